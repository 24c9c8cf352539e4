"""Looking at a data set before anyone trains: what it is, what is in it, and what is wrong with it."""

from mtpeft.data.label_checks import label_errors
from mtpeft.inspection.choice import ReaderChoice, choose
from mtpeft.inspection.page import page
from mtpeft.inspection.stanza import stanza
from mtpeft.inspection.survey import Survey, survey

__all__ = ["ReaderChoice", "Survey", "choose", "label_errors", "page", "stanza", "survey"]
