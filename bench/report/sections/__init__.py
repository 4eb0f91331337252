"""The sections: one file each, which defines `SECTION`, a `Section`. A new section is one new file here."""
