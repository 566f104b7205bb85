"""How long what people said is kept: the group `Retention`."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from app.settings.group import Group


class Retention(Group):
    """How long what people said is kept, days; without a value it is kept until somebody deletes or erases it."""

    model_config = SettingsConfigDict(env_prefix="RETENTION_")

    audio_days: int | None = Field(
        None, ge=1, description="audio of completed recordings is deleted from the bucket or folder after this, days"
    )
    segments_days: int | None = Field(
        None, ge=1, description="the times of the words are forgotten after this, days; the words stay"
    )
    transcripts_days: int | None = Field(
        None, ge=1, description="transcripts and the texts of their time blocks are deleted after this, days"
    )
    prompts_days: int | None = Field(
        None, ge=1, description="prompts of judged time blocks are cleared after this, days"
    )
    results_days: int | None = Field(
        None, ge=1, description="judged time blocks (rows of dashboard) are deleted after this, days"
    )
    parts_days: int | None = Field(
        None, ge=1, description="saved parts of recordings that failed are deleted after this, days"
    )
    errors_days: int | None = Field(
        None, ge=1, description="tracebacks, reasons of past attempts and logs of jobs are cleared after this, days"
    )
