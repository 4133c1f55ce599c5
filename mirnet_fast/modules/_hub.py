"""What a MIRNet has of the Hugging Face Hub: from_pretrained, save_pretrained, push_to_hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn

from ..checkpoints import infer_config, save_checkpoint

try:
    from huggingface_hub import PyTorchModelHubMixin
    from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
except ImportError as _error:
    _REASON = str(_error)
else:
    _REASON = ""

if TYPE_CHECKING or not _REASON:

    class OnHub(
        nn.Module,
        PyTorchModelHubMixin,
        library_name="mirnet_fast",
        paper_url="https://arxiv.org/abs/2003.06792",
        pipeline_tag="image-to-image",
        tags=["mirnet", "image-restoration"],
    ):
        """huggingface_hub's mixin; the arguments are told by the weights, whatever class had made them."""

        def save_pretrained(
            self, save_directory: str | Path, *, config: Any = None, **kwargs: Any
        ) -> str | None:
            config = infer_config(self.state_dict()) if config is None else config
            return super().save_pretrained(save_directory, config=config, **kwargs)

        def _save_pretrained(self, save_directory: Path) -> None:
            # Ours has the names of shared tensors and the arguments in it, too.
            save_checkpoint(self, save_directory / SAFETENSORS_SINGLE_FILE)

        @classmethod
        def _from_pretrained(cls, **kwargs: Any) -> "OnHub":
            return super()._from_pretrained(**kwargs).eval()  # versions before 1 may not

else:

    class OnHub(nn.Module):
        """Tells what is missing."""

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> NoReturn:
            _missing("from_pretrained")

        def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
            _missing("save_pretrained")

        def push_to_hub(self, *args: Any, **kwargs: Any) -> NoReturn:
            _missing("push_to_hub")


def _missing(name):
    raise ImportError(f"{name} needs huggingface_hub ({_REASON}); try: pip install 'mirnet-fast[hub]'")
