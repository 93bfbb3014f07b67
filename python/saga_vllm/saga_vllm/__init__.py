"""SAGA on the side of a vLLM engine: which KV block goes next, and the directives of a scheduler.

`saga_vllm.connector.SagaConnector` is a KV connector for vLLM v1, loaded by `--kv-transfer-config`. It changes nothing of vLLM:
where a part of vLLM that it relies on is not what it expects, it does less, and says so (docs/vllm-connector.md).
"""

__version__ = "0.1.0"
