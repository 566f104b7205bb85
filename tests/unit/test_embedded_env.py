"""The file that tells other terminals where the embedded stack is."""

from pathlib import Path
from tempfile import TemporaryDirectory

from dotenv import dotenv_values
from hypothesis import example, given
from hypothesis import strategies as st

from app.embedded.folders import write_env

AWKWARD = st.text(alphabet="ab\\'\"${}:-# %", max_size=12)
ANY = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\0"), max_size=12)


@given(st.lists(AWKWARD | ANY, max_size=4))
@example(["it's here", 'a "b"', "${HOME}/$HOME", "ends in \\", "b'", "#no comment"])
def test_every_value_is_read_back(values: list[str]) -> None:
    named = {f"N{number}": value for number, value in enumerate(values)}
    with TemporaryDirectory() as folder:
        file = write_env(Path(folder), named)
        assert dotenv_values(file) == named
        assert file.stat().st_mode & 0o777 == 0o600
