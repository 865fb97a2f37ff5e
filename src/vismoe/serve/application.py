"""The HTTP application: routes, and what surrounds them."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from .answers import Embed, Explain, Predict
from .batching import Batcher
from .insight import Insight, run_of
from .models import Models, Served
from .pages import docs_page, page_file
from .requests import schemas
from .requests.bodies import BodyLimit
from .requests.description import WITHOUT_TOKEN, described, uploads
from .requests.errors import ServiceError
from .requests.metrics import Metrics
from .requests.observed import Observed
from .requests.security import Guard
from .requests.uploads import describe, read_upload
from .settings import Settings

ModelQuery = Annotated[int, Query(ge=0, lt=schemas.MOST_MODELS, description="The model: its place in /v1/model.")]
DECODERS = min(4, os.cpu_count() or 1)
"""Number of threads that decode images."""


class Service:
    """A service: its models, its queue and its application.

    **Arguments:**

    - `models`: the models.
    - `settings`: the settings.

    **Attributes:**

    - `application`: the ASGI application.
    - `is_ready`: whether requests are accepted; set to False to have /readyz say that the service stops.
    """

    def __init__(self, models: Models, settings: Settings):
        self.models, self.settings, self.is_ready = models, settings, True
        self.metrics, self.insight = Metrics(), Insight()
        self.batcher = Batcher(settings.queue, settings.batch_size, settings.max_wait_ms / 1000, self.metrics.batch)
        self.metrics.watch_queue(lambda: self.batcher.waiting)
        self.decoders = ThreadPoolExecutor(DECODERS, "decoder")
        api = self._api()
        paths = [getattr(route, "path", "") for route in api.routes]
        guarded = Guard(BodyLimit(api, settings), settings)
        self.application: ASGIApp = Observed(guarded, self.metrics, paths)

    def close(self) -> None:
        """Answers what waits, and ends the threads."""
        self.is_ready = False
        self.insight.close()
        self.batcher.close()
        self.decoders.shutdown(cancel_futures=True)

    async def reload(self) -> None:
        """Opens the models again. **Raises:** ServiceError if that fails; the old ones stay."""
        try:
            await run_in_threadpool(self.models.reload)
        except ServiceError:
            self.metrics.reloads.labels("failed").inc()
            raise
        self.metrics.reloads.labels("loaded").inc()

    async def answer(self, work: Any, contents: list[bytes], *further: Any) -> list[Any]:
        """Has images decoded and run.

        **Arguments:**

        - `work`: a `Predict`, `Embed` or `Explain`.
        - `contents`: the images' files.
        - `further`: what the work gets with each prepared image.

        **Returns:** the result for each image.

        **Raises:** ServiceError if the queue is full, or an image cannot be decoded.
        """
        loop = asyncio.get_running_loop()
        with self.batcher.places(len(contents)) as places:

            def prepare(content: bytes) -> Any:
                prepared = work.prepare(content)
                return places.put(work, (prepared, *further) if further else prepared)

            decoded = [loop.run_in_executor(self.decoders, prepare, content) for content in contents]
            results = await asyncio.gather(*decoded, return_exceptions=True)
        waiting = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            waiting.append(result)
        return [await asyncio.wrap_future(each) for each in waiting]

    def _api(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(api: FastAPI) -> AsyncIterator[None]:
            yield
            await run_in_threadpool(self.close)

        api = FastAPI(
            title="vismoe",
            description="Predictions, features and routing of sparse vision models.",
            version="1",
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,
            lifespan=lifespan,
        )
        api.add_exception_handler(ServiceError, _service_error)
        api.add_exception_handler(RequestValidationError, _invalid)
        api.add_exception_handler(HTTPException, _http_error)
        api.add_exception_handler(Exception, _unexpected)
        self._add_posts(api)
        self._add_gets(api)
        self._add_pages(api)
        return api

    def _add_posts(self, api: FastAPI) -> None:
        most = self.settings.queue

        @api.post("/v1/predict", **uploads(schemas.PredictAnswer, schemas.PredictOptions, schemas.PredictJson))
        async def predict(request: Request) -> JSONResponse:
            """Classifies images, or finds the objects in them: for each image a list, by descending probability."""
            started = time.perf_counter()
            contents, options = await read_upload(request, schemas.PredictOptions, schemas.PredictJson, most)
            served = self.models[options.model]
            work = Predict(served, _capacity(served, options))
            predictions = await self.answer(work, contents, options.topk)
            return JSONResponse({"predictions": predictions, "milliseconds": _milliseconds(started)})

        @api.post("/v1/embed", **uploads(schemas.EmbedAnswer, schemas.EmbedOptions, schemas.EmbedJson))
        async def embed(request: Request) -> JSONResponse:
            """The features of images: the input of the classifier."""
            started = time.perf_counter()
            contents, options = await read_upload(request, schemas.EmbedOptions, schemas.EmbedJson, most)
            served = self.models[options.model]
            if not served.facts["embedding"]:
                raise ServiceError("not_supported", "this model has no features of whole images")
            vectors = await self.answer(Embed(served), contents)
            return JSONResponse({"embeddings": vectors, "milliseconds": _milliseconds(started)})

        @api.post("/v1/explain", **uploads(schemas.ExplainAnswer, schemas.PredictOptions, None))
        async def explain(request: Request) -> JSONResponse:
            """The prediction for one image, with what each expert did with its patches."""
            contents, options = await read_upload(request, schemas.PredictOptions, None, 1)
            served = self.models[options.model]
            work = Explain(served, _capacity(served, options), options.topk)
            (answer,) = await self.answer(work, contents)
            return JSONResponse(answer)

        @api.post("/v1/reload", **described(schemas.StatusAnswer, "reload_failed"))
        async def reload() -> dict[str, str]:
            """Loads the models again. Requests that wait are answered by the old ones; if loading fails, they stay."""
            await self.reload()
            return {"status": "loaded"}

    def _add_gets(self, api: FastAPI) -> None:
        @api.get("/v1/model", **described(schemas.ModelAnswer))
        async def model() -> JSONResponse:
            """The models: task, classes, input size, parameters, MACs, experts."""
            return JSONResponse({"models": [served.facts for served in self.models.current]})

        @api.get(
            "/v1/experts",
            **described(schemas.ExpertsAnswer, "no_data", "bad_value", further={202: schemas.StatusAnswer}),
        )
        async def experts(model: ModelQuery = 0) -> JSONResponse:
            """What the experts do on held-out images of the run. 202 while it is computed."""
            result = self.insight.experts(self.models[model])
            return JSONResponse({"status": "computing"}, 202) if result is None else JSONResponse(result)

        @api.get("/v1/run", **described(schemas.RunAnswer, "no_run", "bad_value"))
        async def run(model: ModelQuery = 0) -> JSONResponse:
            """The curves of the model's run, and its report."""
            return JSONResponse(await run_in_threadpool(run_of, self.models[model]))

        @api.get(
            "/healthz", **described(schemas.StatusAnswer, everywhere=WITHOUT_TOKEN), openapi_extra={"security": []}
        )
        async def healthz() -> dict[str, str]:
            """Whether the process answers."""
            return {"status": "ok"}

        @api.get("/readyz", **described(schemas.StatusAnswer, "stopping"))
        async def readyz() -> dict[str, str]:
            """Whether the service accepts requests."""
            if not self.is_ready:
                raise ServiceError("stopping", "the service is stopping", {"Retry-After": "5"})
            return {"status": "ready"}

        @api.get("/metrics", response_class=PlainTextResponse)
        async def metrics() -> Response:
            """Metrics in the text format of Prometheus."""
            return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _add_pages(self, api: FastAPI) -> None:
        @api.get("/", include_in_schema=False)
        async def index() -> Response:
            return page_file("index.html")

        @api.get("/page/{name}", include_in_schema=False)
        async def page(name: str) -> Response:
            return page_file(name)

        @api.get("/openapi.json", include_in_schema=False)
        async def openapi() -> JSONResponse:
            return JSONResponse(self._description(api))

        @api.get("/docs", include_in_schema=False)
        async def docs() -> Response:
            return docs_page(self._description(api))

    def _description(self, api: FastAPI) -> dict[str, Any]:
        """The OpenAPI document."""
        description = api.openapi()
        if self.settings.token is not None:
            description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            description["security"] = [{"token": []}]
        return description


def _capacity(served: Served, options: schemas.PredictOptions) -> float | None:
    if options.capacity is not None and not served.facts["capacity"]:
        raise ServiceError("not_supported", "this model has no capacity to set: leave the option capacity out")
    return options.capacity


def _milliseconds(started: float) -> float:
    return round(1000 * (time.perf_counter() - started), 2)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error.response


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return ServiceError("bad_value", describe(error.errors())).response


async def _http_error(request: Request, error: Exception) -> Response:
    """An error of the framework: an unknown path or method."""
    assert isinstance(error, HTTPException)
    codes = {404: ("not_found", "no such path: /docs lists them"), 405: ("method_not_allowed", "/docs lists methods")}
    code, message = codes.get(error.status_code, ("bad_request", "the request cannot be read"))
    return ServiceError(code, message, error.headers).response


async def _unexpected(request: Request, error: Exception) -> Response:
    """An error of the service itself. It is raised again, and logged by `Observed`."""
    request_id = request.state.request_id
    return ServiceError("internal", f"the service failed: its log has more at the id {request_id}").response
