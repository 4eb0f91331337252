"""Files that must stay as they are: what earlier versions wrote."""
