from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_BFLOAT16: DType
DTYPE_FLOAT16: DType

class Hello(_message.Message):
    __slots__ = ("protocol", "version", "node_id", "boot")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    node_id: str
    boot: int
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., node_id: _Optional[str] = ..., boot: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("hello",)
    HELLO_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("hello", "node", "formats", "refused")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    node: bytes
    formats: _containers.RepeatedScalarFieldContainer[str]
    refused: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., node: _Optional[bytes] = ..., formats: _Optional[_Iterable[str]] = ..., refused: _Optional[_Iterable[str]] = ...) -> None: ...

class EchoFrame(_message.Message):
    __slots__ = ("start", "payload", "ping")
    START_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    start: EchoStart
    payload: bytes
    ping: int
    def __init__(self, start: _Optional[_Union[EchoStart, _Mapping]] = ..., payload: _Optional[bytes] = ..., ping: _Optional[int] = ...) -> None: ...

class EchoStart(_message.Message):
    __slots__ = ("hello", "expected_node_id", "claim")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    expected_node_id: str
    claim: bool
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., expected_node_id: _Optional[str] = ..., claim: _Optional[bool] = ...) -> None: ...

class EchoAck(_message.Message):
    __slots__ = ("ready", "received", "pong")
    READY_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    ready: EchoReady
    received: EchoReceived
    pong: int
    def __init__(self, ready: _Optional[_Union[EchoReady, _Mapping]] = ..., received: _Optional[_Union[EchoReceived, _Mapping]] = ..., pong: _Optional[int] = ...) -> None: ...

class EchoReady(_message.Message):
    __slots__ = ("hello", "busy")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    busy: bool
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., busy: _Optional[bool] = ...) -> None: ...

class EchoReceived(_message.Message):
    __slots__ = ("bytes", "elapsed_ns")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_NS_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    elapsed_ns: int
    def __init__(self, bytes: _Optional[int] = ..., elapsed_ns: _Optional[int] = ...) -> None: ...

class MeasureRequest(_message.Message):
    __slots__ = ("hello", "target_node_id", "addresses", "max_age_ms")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    TARGET_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    target_node_id: str
    addresses: _containers.RepeatedCompositeFieldContainer[MeasureAddress]
    max_age_ms: int
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., target_node_id: _Optional[str] = ..., addresses: _Optional[_Iterable[_Union[MeasureAddress, _Mapping]]] = ..., max_age_ms: _Optional[int] = ...) -> None: ...

class MeasureAddress(_message.Message):
    __slots__ = ("ip", "port")
    IP_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ip: str
    port: int
    def __init__(self, ip: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class MeasureReply(_message.Message):
    __slots__ = ("busy", "error", "interface", "kind", "address", "rtt_us_p50", "rtt_us_p99", "bytes_per_s", "age_ms", "boot", "seq")
    BUSY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    INTERFACE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RTT_US_P50_FIELD_NUMBER: _ClassVar[int]
    RTT_US_P99_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    busy: bool
    error: str
    interface: str
    kind: str
    address: str
    rtt_us_p50: float
    rtt_us_p99: float
    bytes_per_s: float
    age_ms: int
    boot: int
    seq: int
    def __init__(self, busy: _Optional[bool] = ..., error: _Optional[str] = ..., interface: _Optional[str] = ..., kind: _Optional[str] = ..., address: _Optional[str] = ..., rtt_us_p50: _Optional[float] = ..., rtt_us_p99: _Optional[float] = ..., bytes_per_s: _Optional[float] = ..., age_ms: _Optional[int] = ..., boot: _Optional[int] = ..., seq: _Optional[int] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("name", "revision", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    digest: str
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class Rank(_message.Message):
    __slots__ = ("rank", "size", "shares", "backend", "endpoints", "nonce")
    RANK_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    size: int
    shares: _containers.RepeatedScalarFieldContainer[int]
    backend: str
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    nonce: bytes
    def __init__(self, rank: _Optional[int] = ..., size: _Optional[int] = ..., shares: _Optional[_Iterable[int]] = ..., backend: _Optional[str] = ..., endpoints: _Optional[_Iterable[str]] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("hello", "load_id", "model", "first_layer", "last_layer", "layers_in_model", "rank", "wire_dtype", "numerics", "context", "concurrency", "kv_bits", "memory_bytes", "keep_alive_ms", "weights_from", "random_geometry", "random_seed", "evict_idle")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LOAD_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAST_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAYERS_IN_MODEL_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    KV_BITS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_MS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FROM_FIELD_NUMBER: _ClassVar[int]
    RANDOM_GEOMETRY_FIELD_NUMBER: _ClassVar[int]
    RANDOM_SEED_FIELD_NUMBER: _ClassVar[int]
    EVICT_IDLE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    load_id: str
    model: ModelRef
    first_layer: int
    last_layer: int
    layers_in_model: int
    rank: Rank
    wire_dtype: DType
    numerics: str
    context: int
    concurrency: int
    kv_bits: int
    memory_bytes: int
    keep_alive_ms: int
    weights_from: str
    random_geometry: bytes
    random_seed: int
    evict_idle: bool
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., load_id: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., first_layer: _Optional[int] = ..., last_layer: _Optional[int] = ..., layers_in_model: _Optional[int] = ..., rank: _Optional[_Union[Rank, _Mapping]] = ..., wire_dtype: _Optional[_Union[DType, str]] = ..., numerics: _Optional[str] = ..., context: _Optional[int] = ..., concurrency: _Optional[int] = ..., kv_bits: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., keep_alive_ms: _Optional[int] = ..., weights_from: _Optional[str] = ..., random_geometry: _Optional[bytes] = ..., random_seed: _Optional[int] = ..., evict_idle: _Optional[bool] = ...) -> None: ...

class LoadEvent(_message.Message):
    __slots__ = ("progress", "ready", "failed")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    progress: LoadProgress
    ready: LoadReady
    failed: LoadFailed
    def __init__(self, progress: _Optional[_Union[LoadProgress, _Mapping]] = ..., ready: _Optional[_Union[LoadReady, _Mapping]] = ..., failed: _Optional[_Union[LoadFailed, _Mapping]] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("doing", "done", "total")
    DOING_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    doing: str
    done: int
    total: int
    def __init__(self, doing: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class LoadReady(_message.Message):
    __slots__ = ("stage_id", "data_port", "weights_bytes", "kv_budget_bytes", "base_bytes", "allowed_cuts", "slots", "frame_port", "numerics", "numerics_reason")
    STAGE_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_PORT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_CUTS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    FRAME_PORT_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_REASON_FIELD_NUMBER: _ClassVar[int]
    stage_id: str
    data_port: int
    weights_bytes: int
    kv_budget_bytes: int
    base_bytes: int
    allowed_cuts: _containers.RepeatedScalarFieldContainer[int]
    slots: bool
    frame_port: int
    numerics: str
    numerics_reason: str
    def __init__(self, stage_id: _Optional[str] = ..., data_port: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., kv_budget_bytes: _Optional[int] = ..., base_bytes: _Optional[int] = ..., allowed_cuts: _Optional[_Iterable[int]] = ..., slots: _Optional[bool] = ..., frame_port: _Optional[int] = ..., numerics: _Optional[str] = ..., numerics_reason: _Optional[str] = ...) -> None: ...

class LoadFailed(_message.Message):
    __slots__ = ("code", "message", "hint", "exit", "bytes_needed", "bytes_free", "holders")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    BYTES_NEEDED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FREE_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    hint: str
    exit: int
    bytes_needed: int
    bytes_free: int
    holders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ..., exit: _Optional[int] = ..., bytes_needed: _Optional[int] = ..., bytes_free: _Optional[int] = ..., holders: _Optional[_Iterable[str]] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("hello", "stage_id", "model")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STAGE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    stage_id: str
    model: str
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., stage_id: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class UnloadReply(_message.Message):
    __slots__ = ("stage_ids", "freed_bytes")
    STAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    stage_ids: _containers.RepeatedScalarFieldContainer[str]
    freed_bytes: int
    def __init__(self, stage_ids: _Optional[_Iterable[str]] = ..., freed_bytes: _Optional[int] = ...) -> None: ...

class FilePieces(_message.Message):
    __slots__ = ("path", "size", "sha256", "map", "edges")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    sha256: str
    map: bytes
    edges: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ..., map: _Optional[bytes] = ..., edges: _Optional[_Iterable[int]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("hello", "model", "wanted", "neighbours", "hub", "limit_bytes_per_s", "dry_run", "first_layer", "last_layer")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    HUB_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAST_LAYER_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    model: ModelRef
    wanted: _containers.RepeatedCompositeFieldContainer[FilePieces]
    neighbours: _containers.RepeatedScalarFieldContainer[str]
    hub: bool
    limit_bytes_per_s: int
    dry_run: bool
    first_layer: int
    last_layer: int
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., wanted: _Optional[_Iterable[_Union[FilePieces, _Mapping]]] = ..., neighbours: _Optional[_Iterable[str]] = ..., hub: _Optional[bool] = ..., limit_bytes_per_s: _Optional[int] = ..., dry_run: _Optional[bool] = ..., first_layer: _Optional[int] = ..., last_layer: _Optional[int] = ...) -> None: ...

class FetchEvent(_message.Message):
    __slots__ = ("path", "done", "total", "source", "finished", "error", "all_done", "all_total", "moved", "free_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ALL_DONE_FIELD_NUMBER: _ClassVar[int]
    ALL_TOTAL_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    done: int
    total: int
    source: str
    finished: bool
    error: str
    all_done: int
    all_total: int
    moved: int
    free_bytes: int
    def __init__(self, path: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., source: _Optional[str] = ..., finished: _Optional[bool] = ..., error: _Optional[str] = ..., all_done: _Optional[int] = ..., all_total: _Optional[int] = ..., moved: _Optional[int] = ..., free_bytes: _Optional[int] = ...) -> None: ...

class HaveRequest(_message.Message):
    __slots__ = ("hello", "model")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    model: ModelRef
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ...) -> None: ...

class HaveReply(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[HeldModel]
    def __init__(self, models: _Optional[_Iterable[_Union[HeldModel, _Mapping]]] = ...) -> None: ...

class HeldModel(_message.Message):
    __slots__ = ("model", "files")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    files: _containers.RepeatedCompositeFieldContainer[FilePieces]
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., files: _Optional[_Iterable[_Union[FilePieces, _Mapping]]] = ...) -> None: ...

class WeightsRequest(_message.Message):
    __slots__ = ("hello", "model", "path", "offset", "size")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    model: ModelRef
    path: str
    offset: int
    size: int
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., path: _Optional[str] = ..., offset: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class WeightsPiece(_message.Message):
    __slots__ = ("offset", "data", "sha256")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    sha256: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ("hello", "every_ms")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    EVERY_MS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    every_ms: int
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., every_ms: _Optional[int] = ...) -> None: ...

class StatsReply(_message.Message):
    __slots__ = ("stages", "memory_used_bytes", "memory_free_bytes", "joules", "uptime_ms")
    STAGES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    JOULES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[StageStats]
    memory_used_bytes: int
    memory_free_bytes: int
    joules: float
    uptime_ms: int
    def __init__(self, stages: _Optional[_Iterable[_Union[StageStats, _Mapping]]] = ..., memory_used_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ..., joules: _Optional[float] = ..., uptime_ms: _Optional[int] = ...) -> None: ...

class StageStats(_message.Message):
    __slots__ = ("stage_id", "model", "first_layer", "last_layer", "state", "requests", "tokens_per_s", "kv_used_bytes", "kv_budget_bytes", "weights_bytes", "steps", "step_ms_p50", "step_ms_p99", "idle_ms", "keep_alive_ms", "failure", "numerics", "numerics_reason")
    STAGE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAST_LAYER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    KV_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_P50_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_P99_FIELD_NUMBER: _ClassVar[int]
    IDLE_MS_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_MS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_REASON_FIELD_NUMBER: _ClassVar[int]
    stage_id: str
    model: ModelRef
    first_layer: int
    last_layer: int
    state: str
    requests: int
    tokens_per_s: float
    kv_used_bytes: int
    kv_budget_bytes: int
    weights_bytes: int
    steps: int
    step_ms_p50: float
    step_ms_p99: float
    idle_ms: int
    keep_alive_ms: int
    failure: str
    numerics: str
    numerics_reason: str
    def __init__(self, stage_id: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., first_layer: _Optional[int] = ..., last_layer: _Optional[int] = ..., state: _Optional[str] = ..., requests: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., kv_used_bytes: _Optional[int] = ..., kv_budget_bytes: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., steps: _Optional[int] = ..., step_ms_p50: _Optional[float] = ..., step_ms_p99: _Optional[float] = ..., idle_ms: _Optional[int] = ..., keep_alive_ms: _Optional[int] = ..., failure: _Optional[str] = ..., numerics: _Optional[str] = ..., numerics_reason: _Optional[str] = ...) -> None: ...

class DiagnoseRequest(_message.Message):
    __slots__ = ("hello", "topics")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    TOPICS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    topics: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., topics: _Optional[_Iterable[str]] = ...) -> None: ...

class DiagnoseReply(_message.Message):
    __slots__ = ("captures",)
    CAPTURES_FIELD_NUMBER: _ClassVar[int]
    captures: _containers.RepeatedCompositeFieldContainer[Capture]
    def __init__(self, captures: _Optional[_Iterable[_Union[Capture, _Mapping]]] = ...) -> None: ...

class Capture(_message.Message):
    __slots__ = ("name", "output", "exit", "error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    output: bytes
    exit: int
    error: str
    def __init__(self, name: _Optional[str] = ..., output: _Optional[bytes] = ..., exit: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Down(_message.Message):
    __slots__ = ("start", "open", "frame", "tokens", "cancel")
    START_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    start: FlowStart
    open: Open
    frame: Frame
    tokens: Tokens
    cancel: Cancel
    def __init__(self, start: _Optional[_Union[FlowStart, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class Up(_message.Message):
    __slots__ = ("ready", "opened", "refused", "tokens", "finished", "trace", "prefilled")
    READY_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    ready: FlowReady
    opened: Opened
    refused: Refused
    tokens: Tokens
    finished: Finished
    trace: Trace
    prefilled: Prefilled
    def __init__(self, ready: _Optional[_Union[FlowReady, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., trace: _Optional[_Union[Trace, _Mapping]] = ..., prefilled: _Optional[_Union[Prefilled, _Mapping]] = ...) -> None: ...

class FlowStart(_message.Message):
    __slots__ = ("hello", "stage_id", "role", "driver", "way")
    class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ROLE_UNSPECIFIED: _ClassVar[FlowStart.Role]
        DRIVER: _ClassVar[FlowStart.Role]
        PREVIOUS: _ClassVar[FlowStart.Role]
        LAST: _ClassVar[FlowStart.Role]
        PULSE: _ClassVar[FlowStart.Role]
    ROLE_UNSPECIFIED: FlowStart.Role
    DRIVER: FlowStart.Role
    PREVIOUS: FlowStart.Role
    LAST: FlowStart.Role
    PULSE: FlowStart.Role
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STAGE_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    WAY_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    stage_id: str
    role: FlowStart.Role
    driver: bytes
    way: bytes
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., stage_id: _Optional[str] = ..., role: _Optional[_Union[FlowStart.Role, str]] = ..., driver: _Optional[bytes] = ..., way: _Optional[bytes] = ...) -> None: ...

class FlowReady(_message.Message):
    __slots__ = ("hello", "stage_id")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STAGE_ID_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    stage_id: str
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., stage_id: _Optional[str] = ...) -> None: ...

class Sampler(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "penalty_window", "logit_bias", "seed", "logprobs", "grammar")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PENALTY_WINDOW_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    logit_bias: _containers.ScalarMap[int, float]
    seed: int
    logprobs: int
    grammar: str
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., penalty_window: _Optional[int] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., seed: _Optional[int] = ..., logprobs: _Optional[int] = ..., grammar: _Optional[str] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("endpoint", "stage_id")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    STAGE_ID_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    stage_id: str
    def __init__(self, endpoint: _Optional[str] = ..., stage_id: _Optional[str] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("request", "epoch", "prompt", "emitted", "sampler", "max_tokens", "stop_ids", "deadline_ms", "keep_prefix", "route", "hop", "driver", "trace")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    EMITTED_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    KEEP_PREFIX_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    HOP_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    request: int
    epoch: int
    prompt: _containers.RepeatedScalarFieldContainer[int]
    emitted: int
    sampler: Sampler
    max_tokens: int
    stop_ids: _containers.RepeatedScalarFieldContainer[int]
    deadline_ms: int
    keep_prefix: bool
    route: _containers.RepeatedCompositeFieldContainer[Hop]
    hop: int
    driver: bytes
    trace: bool
    def __init__(self, request: _Optional[int] = ..., epoch: _Optional[int] = ..., prompt: _Optional[_Iterable[int]] = ..., emitted: _Optional[int] = ..., sampler: _Optional[_Union[Sampler, _Mapping]] = ..., max_tokens: _Optional[int] = ..., stop_ids: _Optional[_Iterable[int]] = ..., deadline_ms: _Optional[int] = ..., keep_prefix: _Optional[bool] = ..., route: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., hop: _Optional[int] = ..., driver: _Optional[bytes] = ..., trace: _Optional[bool] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("request", "epoch", "prefix", "kv_bytes", "chunk_tokens")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request: int
    epoch: int
    prefix: int
    kv_bytes: int
    chunk_tokens: int
    def __init__(self, request: _Optional[int] = ..., epoch: _Optional[int] = ..., prefix: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., chunk_tokens: _Optional[int] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("request", "epoch", "node", "code", "message", "bytes_needed", "bytes_free", "position", "exit", "hint")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    BYTES_NEEDED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FREE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    request: int
    epoch: int
    node: str
    code: str
    message: str
    bytes_needed: int
    bytes_free: int
    position: int
    exit: int
    hint: str
    def __init__(self, request: _Optional[int] = ..., epoch: _Optional[int] = ..., node: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., bytes_needed: _Optional[int] = ..., bytes_free: _Optional[int] = ..., position: _Optional[int] = ..., exit: _Optional[int] = ..., hint: _Optional[str] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("request", "epoch", "position", "n")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    request: int
    epoch: int
    position: int
    n: int
    def __init__(self, request: _Optional[int] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., n: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("step", "parts", "tokens", "tensor", "piece", "pieces")
    STEP_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    step: int
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    tensor: Tensor
    piece: int
    pieces: int
    def __init__(self, step: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., tokens: _Optional[_Iterable[int]] = ..., tensor: _Optional[_Union[Tensor, _Mapping]] = ..., piece: _Optional[int] = ..., pieces: _Optional[int] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("rows", "step")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[TokenOut]
    step: int
    def __init__(self, rows: _Optional[_Iterable[_Union[TokenOut, _Mapping]]] = ..., step: _Optional[int] = ...) -> None: ...

class TokenOut(_message.Message):
    __slots__ = ("request", "epoch", "position", "id", "logprob", "top_ids", "top_logprobs", "finish")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    request: int
    epoch: int
    position: int
    id: int
    logprob: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    finish: str
    def __init__(self, request: _Optional[int] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., id: _Optional[int] = ..., logprob: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ..., finish: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("request", "epoch", "reason", "message")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    request: int
    epoch: int
    reason: str
    message: str
    def __init__(self, request: _Optional[int] = ..., epoch: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Prefilled(_message.Message):
    __slots__ = ("request", "epoch", "position")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    request: int
    epoch: int
    position: int
    def __init__(self, request: _Optional[int] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request", "epoch")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    request: int
    epoch: int
    def __init__(self, request: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("step", "rows", "received_ns", "started_ns", "computed_ns", "sent_ns", "bytes_in", "bytes_out", "returned_ns", "stage_id")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_NS_FIELD_NUMBER: _ClassVar[int]
    STARTED_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_NS_FIELD_NUMBER: _ClassVar[int]
    SENT_NS_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    RETURNED_NS_FIELD_NUMBER: _ClassVar[int]
    STAGE_ID_FIELD_NUMBER: _ClassVar[int]
    step: int
    rows: int
    received_ns: int
    started_ns: int
    computed_ns: int
    sent_ns: int
    bytes_in: int
    bytes_out: int
    returned_ns: int
    stage_id: str
    def __init__(self, step: _Optional[int] = ..., rows: _Optional[int] = ..., received_ns: _Optional[int] = ..., started_ns: _Optional[int] = ..., computed_ns: _Optional[int] = ..., sent_ns: _Optional[int] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ..., returned_ns: _Optional[int] = ..., stage_id: _Optional[str] = ...) -> None: ...
