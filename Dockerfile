# The trainer's image: torch, DeepSpeed and what the trainer imports, and the trainer itself. Nothing of the launcher.
#
#   docker build --build-arg VARIANT=cpu --build-arg BASE_IMAGE=debian:bookworm -t dolphin:cpu .
#
# Needs no internet where wheels/ holds every wheel (`pip wheel -w wheels ...`) and PIP_NO_INDEX=1 is given; else the index is
# pip's own or PIP_INDEX_URL. Certificates are those of the base image. Works with the classic builder and with BuildKit.

ARG BASE_IMAGE=nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04

FROM ${BASE_IMAGE} AS base
RUN { command -v python3 && python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
      && test -e /etc/ssl/certs/ca-certificates.crt; } >/dev/null 2>&1 \
    || { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
         && rm -rf /var/lib/apt/lists/*; }
ENV PATH=/opt/dolphin/venv/bin:$PATH \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1

# What the trainer imports, as pyproject.toml says: a file of its own, so that other changes of pyproject.toml rebuild nothing.
FROM base AS requirements
ARG EXTRAS="train track lora quantised gguf eval"
ARG VARIANT=cuda
COPY pyproject.toml /
RUN python3 -c "import tomllib; p = tomllib.load(open('/pyproject.toml', 'rb'))['project']; \
print(*(d for e in ('$EXTRAS' + (' gpu' if '$VARIANT' == 'cuda' else '')).split() for d in p['optional-dependencies'][e]), \
*(d for d in p['dependencies'] if d.startswith(('pydantic', 'pyyaml', 'psutil'))), sep='\n')" > /requirements.txt

# torch alone: the largest layer, and the one that changes least.
FROM base AS torch
ARG VARIANT=cuda
ARG TORCH_INDEX=
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_NO_INDEX=
ARG PIP_FIND_LINKS=/build/wheels
WORKDIR /build
COPY constraints.txt wheel[s] /build/wheels/
# The trainer is found by a .pth file and not by PYTHONPATH, which SkyPilot takes away from what it runs in a container.
RUN python3 -m venv /opt/dolphin/venv \
    && printf '%s\n' /opt/dolphin/app /opt/dolphin/flash > "$(echo /opt/dolphin/venv/lib/python3*/site-packages)/dolphin.pth" \
    && pip install -c wheels/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && python -c "import sys, torch; v = torch.version.cuda; print('torch', torch.__version__, 'CUDA', v); \
sys.exit('VARIANT=$VARIANT, but this torch is built for ' + ('CUDA ' + v if v else 'a CPU')) if bool(v) != ('$VARIANT' == 'cuda') else None"

# The rest. Only what this stage adds is copied on, so that a new transformers does not move torch's gigabytes again.
FROM torch AS stack
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_NO_INDEX=
ARG PIP_FIND_LINKS=/build/wheels
COPY --from=requirements /requirements.txt /build/
RUN touch /build/before && sleep 1 \
    && pip install -c wheels/constraints.txt -r requirements.txt \
    && mkdir /added \
    && find /opt/dolphin/venv -cnewer /build/before ! -type d -print0 | tar -c --null -T - 2>/dev/null | tar -x -C /added

# Kernels of attention beside torch's own, a layer of their own: none, unless FLASH_ATTN says where they come from. PyPI has no
# wheel of flash-attn, so it is `build` (nvcc and an hour; MAX_JOBS bounds its memory), or wheels for this torch, CUDA and Python that
# you have: URLs, or files of wheels/ (FLASH_ATTN=wheels/flash_attn_3-3.0.0-cp39-abi3-linux_x86_64.whl), of flash-attn or FlashAttention 3.
FROM stack AS flash
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_NO_INDEX=
ARG PIP_FIND_LINKS=/build/wheels
ARG VARIANT=cuda
ARG FLASH_ATTN=none
ARG FLASH_ATTN_VERSION="==2.8.*"
ARG MAX_JOBS=4
RUN mkdir -p /flash \
    && case "$VARIANT:$FLASH_ATTN" in \
         cpu:*|*:none|*:) ;; \
         *:build) pip install wheel \
                  && MAX_JOBS=$MAX_JOBS pip install --no-deps --no-build-isolation --target /flash "flash-attn$FLASH_ATTN_VERSION" ;; \
         *.whl) pip install --no-deps --target /flash $FLASH_ATTN ;; \
         *) echo "FLASH_ATTN=$FLASH_ATTN: write none, build, or the URL or file of a wheel" >&2; exit 1 ;; \
       esac

FROM base AS code
COPY trainer /opt/dolphin/app/trainer
RUN python3 -m compileall -q /opt/dolphin/app

FROM base
COPY --from=torch /opt/dolphin/venv /opt/dolphin/venv
COPY --from=stack /added/ /
COPY --from=flash /flash /opt/dolphin/flash
COPY --from=code /opt/dolphin/app /opt/dolphin/app
ENV PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONWARNINGS=ignore::FutureWarning \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
ARG VARIANT=cuda
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="dolphin" \
      org.opencontainers.image.description="The trainer of dolphin" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      dolphin.variant="$VARIANT"
# Runs as root unless told otherwise, because SkyPilot sets a node up in it; `dolphin launch --on docker` runs it as the user.
ENTRYPOINT ["python", "-m", "trainer.supervise"]
