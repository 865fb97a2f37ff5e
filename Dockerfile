# A service of one model: docs/serve.md
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /source/
# Where to take PyTorch from, such as its index of wheels for CPUs (docs/install.md): others bring gigabytes of CUDA.
ARG TORCH_INDEX=
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir -c /source/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch torchvision
COPY . /source
# The second line fails where the compiled kernels are missing.
RUN /venv/bin/pip install --no-cache-dir -c /source/constraints.txt '/source[serve,export]' \
    && /venv/bin/python -c 'import vismoe.kernels as k; assert k.native(), k.kernels_in_use()'

FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /venv /venv
RUN useradd --no-create-home --uid 10001 vismoe
USER vismoe
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp HF_HUB_OFFLINE=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["vismoe", "serve"]
CMD ["/model", "--host", "0.0.0.0", "--token-file", "/run/secrets/token"]
