"""`python -m bench` is `bench`."""

from bench.interpreters import leave_current_folder

if __name__ == "__main__":
    leave_current_folder()  # before anything is imported that a folder there could pass for

from bench.cli import main

if __name__ == "__main__":
    main()
