"""The web pages, their events and their API: `create_app(services)`."""

from app.web.application import create_app

__all__ = ["create_app"]
