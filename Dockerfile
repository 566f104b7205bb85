# syntax=docker/dockerfile:1.10
# Two images: `docker build .` with faster-whisper, `docker build --target toban-torch .` with openai-whisper and PyTorch
# as well. docs/install.md has the build arguments.

ARG PYTHON=3.11.13-slim-bookworm

# What every image stands on: Python, and a user without rights.
FROM python:${PYTHON} AS base
RUN groupadd --gid 10001 toban \
    && useradd --uid 10001 --gid toban --no-create-home --home-dir /tmp --shell /usr/sbin/nologin toban \
    && install --directory --owner=toban --group=toban /work /models /audio
ENV PATH=/opt/toban/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    WHISPER_MODELS_FOLDER=/models

# The libraries, as the lock names them; a change of the program alone does not install them anew.
FROM base AS libraries
RUN python -m venv /opt/toban
WORKDIR /src
COPY deploy/requirements.lock deploy/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --disable-pip-version-check --require-hashes --only-binary=:all: -r deploy/requirements.lock

FROM libraries AS program
COPY pyproject.toml README.md LICENSE beat_schedule.py flowerconfig.py ./
COPY app app
COPY tasks tasks
COPY workers workers
COPY migrations migrations
RUN pip install --disable-pip-version-check --no-cache-dir --no-index --no-deps --no-build-isolation .

# PyTorch comes from its own index where that has the build wanted (without GPU libraries, say), so it is not in the lock.
FROM libraries AS libraries-torch
ARG TORCH=2.13.0
ARG TORCH_INDEX=""
COPY deploy/requirements-openai-whisper.lock deploy/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    PIP_INDEX_URL=$TORCH_INDEX pip install --disable-pip-version-check "torch==$TORCH" \
    && pip install --disable-pip-version-check --require-hashes --no-deps --no-build-isolation \
      -r deploy/requirements-openai-whisper.lock

FROM libraries-torch AS program-torch
COPY --from=program /src/ ./
RUN pip install --disable-pip-version-check --no-cache-dir --no-index --no-deps --no-build-isolation .

# What both images say of themselves. The check is the pages'; whoever starts something else brings another one along.
FROM base AS image
LABEL org.opencontainers.image.title="Toban" \
      org.opencontainers.image.description="Every waiting database row becomes exactly one Celery task" \
      org.opencontainers.image.licenses="MIT"
WORKDIR /work
EXPOSE 8000
CMD ["toban", "web", "--no-link"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["toban", "health", "web"]

# Models: those in deploy/models (a models folder made elsewhere), and those named, which are downloaded.
FROM image AS toban-torch
ARG WHISPER_MODELS=""
ENV WHISPER_ENGINE=openai-whisper
COPY --from=program-torch /opt/toban /opt/toban
USER 10001:10001
RUN --mount=type=bind,source=deploy/models,target=/given \
    --mount=type=secret,id=models_mirror,env=WHISPER_MODELS_MIRROR --mount=type=secret,id=hf_token,env=HF_TOKEN \
    cp --recursive /given/. /models/ \
    && for model in $WHISPER_MODELS; do toban models pull "$model" || exit 1; done

FROM image AS toban
ARG WHISPER_MODELS=""
COPY --from=program /opt/toban /opt/toban
USER 10001:10001
RUN --mount=type=bind,source=deploy/models,target=/given \
    --mount=type=secret,id=models_mirror,env=WHISPER_MODELS_MIRROR --mount=type=secret,id=hf_token,env=HF_TOKEN \
    cp --recursive /given/. /models/ \
    && for model in $WHISPER_MODELS; do toban models pull "$model" || exit 1; done
