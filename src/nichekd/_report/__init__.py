"""The page that ``nichekd predict`` leaves: what was found, how sure it is, and of what student."""

from nichekd._report._student_facts import student_facts
from nichekd._report._write import Run, write_report

__all__ = ["Run", "student_facts", "write_report"]
