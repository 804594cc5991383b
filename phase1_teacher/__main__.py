"""`python -m phase1_teacher` is `fs-teacher`."""

from phase1_teacher.cli import main

if __name__ == "__main__":
    main(prog_name="fs-teacher")
