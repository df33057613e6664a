# tfm for CPUs, without PyTorch: translate, evaluate, score, tokenize and check.
#   docker build -t tfm . && echo "Hello." | docker run -i -v "$PWD/model:/model:ro" tfm translate -m /model
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++
COPY . /source
RUN TFM_REQUIRE_NATIVE=1 pip wheel --no-deps --wheel-dir /wheel /source

FROM python:3.12-slim
COPY --from=build /wheel /wheel
RUN pip install --no-cache-dir numpy rich sacrebleu sentencepiece typer
RUN pip install --no-cache-dir --no-deps /wheel/*.whl && rm -r /wheel
RUN useradd --create-home tfm
USER tfm
WORKDIR /home/tfm
ENTRYPOINT ["tfm"]
