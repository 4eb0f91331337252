"""A coverage-guided fuzzer over everything that reads other people's files: `nox -s fuzz`."""
