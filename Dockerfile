# wavewright for training on GPUs.
#
#   docker build -t wavewright .
#   docker run --gpus all --shm-size 8g -v "$PWD/data:/app/data" -v "$PWD/runs:/app/runs" wavewright \
#       deepspeed launch/train.py --hparams base
#
# Another base image (a Debian or Ubuntu with Python 3.10 to 3.12): --build-arg BASE_IMAGE=...; its CUDA must be the one that
# pip's torch is built with. One without CUDA, such as ubuntu:22.04, gets the extension for the CPU.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu22.04
FROM ${BASE_IMAGE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3 python3-dev python3-venv g++ ninja-build git tini \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 trainer && mkdir -p /app && chown trainer /app
USER trainer
WORKDIR /app

ENV VIRTUAL_ENV=/app/.venv \
    PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1
COPY --chown=trainer pyproject.toml README.md ./
COPY --chown=trainer hparams hparams
COPY --chown=trainer enhancer enhancer
COPY --chown=trainer data_shards data_shards
COPY --chown=trainer launch launch
RUN python3 -m venv .venv \
    && pip install --no-cache-dir --upgrade pip setuptools wheel \
    && pip install --no-cache-dir -e '.[rooms]'

# DeepSpeed's extension is compiled here: training compiles nothing, and does without what was not built.
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;10.0;12.0"
RUN TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST}" python launch/build_extensions.py

# tini hands signals to every process of the group, so that stopping the container saves the run.
ENTRYPOINT ["tini", "-g", "--"]
CMD ["deepspeed", "launch/train.py", "--hparams", "base"]
