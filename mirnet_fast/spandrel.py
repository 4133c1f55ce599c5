"""MIRNet for spandrel, by which chaiNNer and others load files of many architectures.

`mirnet_fast.spandrel.install()` once, and `spandrel.ModelLoader` takes MIRNet's files too. Needs the extra
`spandrel`.
"""

from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchSupport,
    ImageModelDescriptor,
    ModelTiling,
    SizeRequirements,
    StateDict,
)

from .checkpoints import TELLING, CheckpointError, infer_config
from .checkpoints.names import fill_shared_names
from .inference import size_multiple
from .modules import MIRNet


class MIRNetArch(Architecture[MIRNet]):
    """Published files and our own, into `mirnet_fast.MIRNet`, whatever the network's size."""

    def __init__(self) -> None:
        super().__init__(id="MIRNet", detect=TELLING.issubset)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[MIRNet]:
        """As spandrel asks for; its state_dict may have one name of each shared tensor.

        Raises:
            CheckpointError: these are not the names and shapes of a MIRNet, or names that share a tensor in
                it have different values.
        """
        try:
            config = infer_config(state_dict)
        except CheckpointError:
            # Shared names were dropped, so nothing tells the columns: as published networks have them.
            config = infer_config(state_dict, width=2)
        model = MIRNet(**config)
        state = dict(state_dict)
        problems = fill_shared_names(model.state_dict(keep_vars=True), state)
        if problems:
            raise CheckpointError("\n  ".join(["this file does not fit a MIRNet:", *problems]))
        return ImageModelDescriptor(
            model,
            state,
            self,
            purpose="Restoration",
            tags=[f"{config['n_feat']}nf", f"{config['n_RRG']}x{config['n_MSRB']}"],
            supports_half=True,
            supports_bfloat16=True,
            scale=1,
            input_channels=config["in_channels"],
            output_channels=config["out_channels"],
            size_requirements=SizeRequirements(multiple_of=size_multiple(model)),
            tiling=ModelTiling.DISCOURAGED,  # its attention takes means over the whole image
        )


def install() -> None:
    """Add MIRNet to spandrel's registry, before all others; once is enough, more does no harm."""
    if "MIRNet" not in MAIN_REGISTRY:
        others = tuple(support.architecture.id for support in MAIN_REGISTRY)
        MAIN_REGISTRY.add(ArchSupport.from_architecture(MIRNetArch(), before=others))
