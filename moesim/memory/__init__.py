"""What fits where: the memory ledger of a plan and its remedies."""

from moesim.memory.ledger import Ledger, Occupancy, ledger
from moesim.memory.remedy import Question, check, remedies, sequences_that_fit

__all__ = ["Ledger", "Occupancy", "Question", "check", "ledger", "remedies", "sequences_that_fit"]
