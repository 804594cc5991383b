"""`python -m phase2_student` is `fs-student`."""

from phase2_student.cli import main

if __name__ == "__main__":
    main(prog_name="fs-student")
