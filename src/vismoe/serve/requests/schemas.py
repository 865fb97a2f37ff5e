"""Requests and answers as OpenAPI describes them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_CLASSES = 100_000
MOST_CAPACITY = 1000.0
MOST_MODELS = 16

TopK = Annotated[int, Field(ge=1, le=MOST_CLASSES, description="Classes in each prediction, at most.")]
Capacity = Annotated[
    float | None,
    Field(
        gt=0,
        le=MOST_CAPACITY,
        allow_inf_nan=False,
        description="Capacity factor of the experts for this request; default: the model's own.",
    ),
]
ModelNumber = Annotated[int, Field(ge=0, lt=MOST_MODELS, description="The model: its place in /v1/model.")]
Base64Images = Annotated[
    list[Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]],
    Field(min_length=1, description="Image files in base64."),
]


IN_SERVICE = "Time of the request in the service, waiting included."


class Options(BaseModel):
    """Options of a request."""

    model_config = ConfigDict(extra="forbid")


class EmbedOptions(Options):
    model: ModelNumber = 0


class PredictOptions(EmbedOptions):
    topk: TopK = 5
    capacity: Capacity = None


class PredictJson(PredictOptions):
    images: Base64Images


class EmbedJson(EmbedOptions):
    images: Base64Images


class Error(BaseModel):
    code: str
    message: str


class ErrorAnswer(BaseModel):
    error: Error


class Found(BaseModel):
    """A class, or an object of a class."""

    label: str
    probability: float
    box: list[float] | None = Field(
        None, description="Left, top, right and bottom of an object, in pixels of the upright image."
    )


class PredictAnswer(BaseModel):
    predictions: list[list[Found]] = Field(description="For each image its classes or objects, most probable first.")
    milliseconds: float = Field(description=IN_SERVICE)


class EmbedAnswer(BaseModel):
    embeddings: list[list[float]] = Field(description="For each image its features.")
    milliseconds: float = Field(description=IN_SERVICE)


class ExplainAnswer(BaseModel):
    predictions: list[Found] = Field(description="Classes or objects, most probable first.")
    milliseconds: float = Field(description="Time of the forward pass.")
    width: int = Field(description="Width of the image as the network sees it.")
    height: int = Field(description="Its height.")
    image: str = Field(description="The image as the network sees it, as a data URI.")
    kept: float = Field(description="Share of the tokens' choices that were kept, 0 to 1.")
    layers: list[dict[str, Any]] = Field(
        description="For each sparse layer its name, the number of experts, k (choices of each patch), grid (rows and "
        "columns of patches), and row by row for each patch: expert (its experts, best first; -1: dropped), weight "
        "(gates of their outputs), kept (whether an expert has it), padding (whether it is a margin)."
    )
    rollout: list[list[float]] | None = Field(
        description="Attention rollout: for each patch how much of it reaches the answer; null where it is not known."
    )


class ModelAnswer(BaseModel):
    models: list[dict[str, Any]]


class ExpertsAnswer(BaseModel):
    status: Literal["ready"]
    images: int
    classes: list[str]
    by_patch: bool = Field(description="Whether a patch has the class of the labelled box that it lies in.")
    layers: list[dict[str, Any]]


class RunAnswer(BaseModel):
    metrics: list[dict[str, Any]]
    steps: int
    finished: bool
    report: dict[str, Any] | None = Field(description="The report of the run; null before its end.")


class StatusAnswer(BaseModel):
    status: str
