"""The group `Flower`: what Celery's dashboard is started with."""

from collections.abc import Iterator

from pydantic import Field, SecretStr

from app.settings.group import Group
from app.settings.problems import Problem


class Flower(Group):
    """Celery's dashboard (`celery -A app flower`). Its other options are its own: docs/install.md."""

    flower_basic_auth: SecretStr | None = Field(
        None,
        description="who may sign in: name:password, several separated by commas; without it Flower does not start",
    )
    flower_address: str = Field(
        "127.0.0.1",
        description="the address it listens on; 0.0.0.0: all, which needs HTTPS before it",
    )
    flower_port: int = Field(5555, ge=1, le=65535, description="its port")
    flower_url_prefix: str = Field(
        "",
        pattern=r"^/?[A-Za-z0-9._~/-]*$",
        description="the path under which a proxy shows it, such as flower, if it passes that on",
    )

    def sign_ins(self) -> list[str]:
        """The accounts, each as name:password."""
        if self.flower_basic_auth is None:
            return []
        return [entry.strip() for entry in self.flower_basic_auth.get_secret_value().split(",")]

    def problems(self) -> Iterator[Problem]:
        for entry in self.sign_ins():
            name, _, password = entry.partition(":")
            if not name or not password or not entry.isascii():
                yield Problem(
                    "E065",
                    "FLOWER_BASIC_AUTH",
                    "has an entry that is not name:password, both in ASCII",
                    "write it so; several are separated by commas, so a password can't hold one",
                )
                return
