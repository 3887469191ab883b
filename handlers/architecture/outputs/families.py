"""Model families of our own, made known to transformers: its configs and auto classes are asked by name everywhere."""


def register() -> None:
    """Let transformers know them; once more does nothing."""
    from transformers import AutoConfig, AutoModel

    from handlers.architecture.outputs.sasrec import SasRecConfig, SasRecForNextItem

    AutoConfig.register(SasRecConfig.model_type, SasRecConfig, exist_ok=True)
    AutoModel.register(SasRecConfig, SasRecForNextItem, exist_ok=True)
