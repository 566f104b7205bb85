"""The pages: each module has a `router`; whoever asks is signed in (`app.web.routes`)."""

from fastapi import APIRouter

from app.web.pages import incidents

routers: list[APIRouter] = [incidents.router]
