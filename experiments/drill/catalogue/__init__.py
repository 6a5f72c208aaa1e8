"""The drills. Each row is cut from a function of ours and graded by the tests that hold it.

A new drill is one row in the file of its lab, and one file of tests/drills: a right answer in another style, and
mistakes.
"""

from experiments.drill.catalogue import lab0, lab1, lab2, lab3, lab4, lab5, lab6, lab7
from experiments.drill.catalogue.wholes import WHOLES

__all__ = ["DRILLS", "WHOLES"]
DRILLS = lab0.DRILLS | lab1.DRILLS | lab2.DRILLS | lab3.DRILLS | lab4.DRILLS | lab5.DRILLS | lab6.DRILLS | lab7.DRILLS
