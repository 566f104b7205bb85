"""A module for TOBAN_SOURCES: every part of a recording is worth saving, however soon it was heard."""

from app.speech import hearing

hearing._WORTH_SAVING = 0.0
