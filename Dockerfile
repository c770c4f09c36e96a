# thorad with all extras:   docker build -t thorad --build-arg TORCH_INDEX=ADDRESS .
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" thorad detect /data/scans -o /data/results
# ADDRESS is that of PyTorch's builds for a CPU or one version of CUDA, as PyTorch's page on installing names it. Without
# it pip takes the default build, which brings gigabytes of CUDA along. On NVIDIA cards: docker run --gpus all ...
FROM python:3.12-slim AS build
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
ARG TORCH_INDEX=
COPY --from=build /wheels /source/constraints.txt /wheels/
RUN env ${TORCH_INDEX:+PIP_INDEX_URL="$TORCH_INDEX"} pip install --no-cache-dir --constraint /wheels/constraints.txt torch \
    && pip install --no-cache-dir --constraint /wheels/constraints.txt "$(ls /wheels/thorad-*.whl)[all]" \
    && useradd --create-home --uid 1000 thorad
USER 1000
WORKDIR /data
ENTRYPOINT ["thorad"]
CMD ["--help"]
