# thorad on a CPU, with all extras:   docker build -t thorad .
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" thorad detect /data/scans -o /data/results
# On NVIDIA cards: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130, and docker run --gpus all
FROM python:3.12-slim AS build
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /wheels
# torch first: from PyPI it would bring gigabytes of CUDA along.
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt --index-url "$TORCH_INDEX" torch \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt "$(ls /wheels/thorad-*.whl)[all]" \
    && useradd --create-home --uid 1000 thorad
USER 1000
WORKDIR /data
ENTRYPOINT ["thorad"]
CMD ["--help"]
