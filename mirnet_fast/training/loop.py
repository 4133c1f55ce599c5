"""The training loop: one process, or as many as torchrun starts."""

import contextlib
import copy
import math
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from .. import evaluation, inference, reference
from .._files import remove_halves, replaced
from .._progress import Progress
from ..checkpoints import save_checkpoint
from ..modules import MIRNet
from ..reference import MSRB
from .ablations import ablated
from .data import Order, Patches, Photos, collated, generator
from .distributed import Replica, from_first, load_whole_state, mean, rank_and_world, shard, whole_state
from .failures import TrainingError, can_be_written, failures_told, last_line
from .last import ANEW, LAST, identity, read, recipe_in
from .lock import LockedError, locked
from .recipe import Recipe, differences, real_paths
from .record import Record
from .weights import completed, load_weights

BEST = "best.safetensors"
DIFFERENCES_SHOWN = 3


def charbonnier(output: torch.Tensor, target: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Mean of sqrt((output - target)**2 + epsilon**2) (arXiv 2003.06792, equation 5)."""
    return ((output - target).square() + epsilon**2).sqrt().mean()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear rise over `warmup` steps, then a cosine to the final rate (arXiv 1608.03983, equation 5)."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    low = recipe.final_learning_rate
    return low + (recipe.learning_rate - low) * (1 + math.cos(math.pi * done)) / 2


class Trainer:
    """Trains a recipe's network in a folder, from its last checkpoint if there is one.

    Args:
        recipe: a Recipe.
        folder: gets last.pt (all that is needed to go on), best.safetensors (the weights of the best
            validation) and the log, pictures and events of a Record.
        device: of this process.
        make: class of the network; MIRNet unless told.
        dtype: of weights and photos.

    Attributes:
        recipe: the Recipe, with all arguments of the network where its `weights` tell them.
        step: updates that are done.
        best: PSNR in dB of the best validation so far.

    Raises:
        RecipeError: the weights that the recipe begins with cannot be read, or do not fit the network.
        ImageError: the recipe's photos are missing or do not fit together, or one of the validation is
            damaged or smaller than SSIM's window.
        TrainingError: the checkpoint in the folder is of another recipe or damaged, another training is
            running in the folder, nothing can be written there, or the memory is not enough.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: str | Path,
        device: torch.device | str = "cpu",
        make: type[reference.MIRNet] = MIRNet,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        self.rank, self.world = rank_and_world()
        if recipe.batch % (self.world * recipe.accumulate):
            raise TrainingError(
                f"batch, {recipe.batch}, must be a multiple of processes times accumulate, "
                f"{self.world} x {recipe.accumulate}"
            )
        with can_be_written(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.patches = Patches(recipe.train, recipe.patch, recipe.seed)
        self.validation = recipe.validation and Photos(recipe.validation.source)
        if self.validation and self.rank == 0:
            for i in range(len(self.validation)):  # now, not when thousands of steps would be lost
                self.validation.check(i, 11, "SSIM's window")
        self.record = Record(self.folder)
        self.step, self.best, self._stop = 0, -math.inf, False
        # The step of last.pt, and what that file was when this process read or wrote it.
        self.saved, self._last = 0, identity(self.folder / LAST)
        with self._alone():
            self._begin(recipe, make)

    def _begin(self, recipe, make):
        """Make the network and all that goes with it, as new or as it was at the last checkpoint."""
        path, state, before = self.folder / LAST, None, None
        if self.rank == 0:
            remove_halves(self.folder)
        if path.exists():
            state = read(path)
            before = recipe_in(state, path)
        self.recipe, self._checksum = completed(recipe, before)
        if before is not None:
            begun_with = state.get("weights")
            self._checksum = self._checksum or begun_with  # their file may be gone
            self._compare(path, before, begun_with)
        random.seed(recipe.seed)
        np.random.seed(recipe.seed)
        torch.manual_seed(recipe.seed)
        with failures_told("the network"):
            self._make(make, anew=state is None)
        if state is not None:
            try:
                self._take(state)
            except Exception as error:  # whatever torch makes of what does not fit
                raise TrainingError(
                    f"{path} is damaged: {type(error).__name__}: {last_line(error)}; {ANEW}"
                ) from error
        if self.rank == 0:
            self.record.forget_after(self.step)

    def _make(self, make, anew):
        recipe = self.recipe
        network = ablated(make, **recipe.ablation.model_dump())(**recipe.network.model_dump())
        self.network = network.to(self.device, self.dtype)
        begun = anew and recipe.weights is not None
        if begun:
            load_weights(self.network, recipe)
        self.judge = copy.deepcopy(self.network).eval()
        self.average = None
        if recipe.ema is not None:
            self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
            # Of nothing yet it would become what the first step makes of the weights.
            self.average.n_averaged.fill_(int(begun))
        if recipe.checkpoint_blocks:
            for module in self.network.modules():
                if isinstance(module, MSRB):
                    module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        self.parallel = self.network
        if self.world > 1 and recipe.shard:
            shard(self.network)
            if self.average is not None:
                shard(self.average.module)
        elif self.world > 1:
            self.parallel = Replica(self.network)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=recipe.learning_rate, betas=recipe.betas
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")

    def run(self, progress: bool = True) -> list[float]:
        """Train to the last step; the losses of the steps, all processes' mean.

        SIGINT (Ctrl-C) and SIGTERM end the step and save a checkpoint first; a second one does not.

        Raises:
            KeyboardInterrupt: after SIGINT or SIGTERM.
            TrainingError: a loss is not finite, a checkpoint cannot be written, a worker was killed, the
                memory is not enough, or another training runs or has gone on in the folder.
            ImageError: a photo is damaged, or of another size than its partner.
            OSError: a photo cannot be read.
        """
        losses = []
        shown = progress and self.rank == 0
        self.network.train()
        with (
            failures_told("a step"),  # first, as word of a dead worker may come until the end
            self._alone(),
            Progress(self.recipe.steps, "steps", self.step, shown, lines=True) as bar,
            self._stoppable(),
            contextlib.closing(self.record),
            self._loader() as loader,
        ):
            if self.step == 0 and self.recipe.weights is not None and self.validation:
                psnr, ssim = self._judged()
                if self.rank == 0:
                    self.record.add_row(0, psnr=psnr, ssim=ssim)
            for batch in loader:
                if isinstance(batch, Exception):
                    raise batch
                loss, stop = self._update(*batch)
                losses.append(loss)
                self.step += 1
                bar.advance(f"loss {loss:.4f}")
                self._after(loss)
                if stop:
                    self.save()
                    raise KeyboardInterrupt
        return losses

    @contextlib.contextmanager
    def _loader(self):
        """The batches of the steps that are left."""
        recipe, over = self.recipe, multiprocessing.RawValue("b")
        try:
            yield DataLoader(
                self.patches,
                batch_sampler=Order(self.step, recipe.steps, recipe.batch, self.rank, self.world),
                collate_fn=collated,
                worker_init_fn=partial(_left_to_the_trainer, over),
                num_workers=recipe.workers,
                pin_memory=self.device.type == "cuda",
            )
        finally:
            over.value = True

    @contextlib.contextmanager
    def _alone(self):
        """Inside, no other training reads or writes the folder, nor has since last.pt was read."""
        with contextlib.ExitStack() as stack:
            problem = None
            if self.rank == 0:
                try:
                    with can_be_written(self.folder):
                        stack.enter_context(locked(self.folder))
                    if self._last != identity(self.folder / LAST):
                        problem = f"another training has gone on in {self.folder} since; run the same again"
                except (TrainingError, LockedError) as error:
                    problem = str(error)
            problem = from_first(problem)
            if problem is not None:
                raise TrainingError(problem)
            yield

    @contextlib.contextmanager
    def _stoppable(self):
        """Inside, a signal to stop is noted, for the end of the step."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number, frame):
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._stop = False

    def _update(self, given, target, names):
        """One step: its loss, and whether a process was told to stop."""
        recipe = self.recipe
        rate = learning_rate(recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        mixed = recipe.precision != "float32"
        total = 0.0
        parts = zip(given.chunk(recipe.accumulate), target.chunk(recipe.accumulate), strict=True)
        for i, (x, y) in enumerate(parts):
            x, y = (t.to(self.device, self.dtype, non_blocking=True) for t in (x, y))
            x, y = self._mixed_up(x, y, i)
            if self.world > 1:
                self.parallel.set_requires_gradient_sync(i + 1 == recipe.accumulate)
            with torch.autocast(
                self.device.type, getattr(torch, recipe.precision) if mixed else None, enabled=mixed
            ):
                output = self.parallel(x.contiguous(memory_format=torch.channels_last))
            loss = charbonnier(output.to(self.dtype), y, recipe.epsilon) / recipe.accumulate
            self.scaler.scale(loss).backward()
            total += loss.detach()
        loss, stop = mean(torch.stack([total, total.new_tensor(float(self._stop))])).tolist()
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {self.step}: the loss is {loss}; the photos of this batch: "
                f"{', '.join(dict.fromkeys(names))}. The last checkpoint is from before it"
            )
        if recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss, stop > 0

    def _mixed_up(self, x, y, part):
        """Patches mixed with their neighbours (Zhang et al., "mixup", ICLR 2018), some of them."""
        if not self.recipe.mixup:
            return x, y
        number = (self.step * self.world + self.rank) * self.recipe.accumulate + part
        rng = generator(self.recipe.seed, 2**62 + number)
        share = np.where(rng.random(len(x)) < self.recipe.mixup, rng.beta(1.2, 1.2, len(x)), 1)
        share = torch.from_numpy(share).to(x).view(-1, 1, 1, 1)
        return tuple(share * t + (1 - share) * t.roll(1, 0) for t in (x, y))

    def _after(self, loss):
        recipe = self.recipe
        end = self.step == recipe.steps
        psnr = ssim = None
        if self.validation and (end or self.step % recipe.validation.every == 0):
            psnr, ssim = self._judged()
        if self.rank == 0:
            self.record.add_row(self.step, loss, learning_rate(recipe, self.step - 1), psnr, ssim)
        if end or self.step % recipe.save_every == 0:
            self.save()

    def _judged(self):
        """(PSNR, SSIM) of the weights as they are, which are kept if they are the best; all take part."""
        weights = whole_state(self.network if self.average is None else self.average.module)
        if self.rank > 0:
            return None, None
        self.judge.load_state_dict(weights)
        psnr, ssim = self.validate(self.record.add_sample)
        if psnr > self.best:
            self.best = psnr
            self.save_weights(self.folder / BEST)
        return psnr, ssim

    def validate(self, show: Callable[..., None] | None = None) -> tuple[float, float]:
        """(PSNR in dB, SSIM) of `judge`, means over the validation photos, as `evaluate` prints.

        show: called with step, number, name, input, result and target of as many photos as the recipe says.
        """
        scores = []
        for i in range(len(self.validation)):
            given, target = self.validation.pair(i, generator(self.recipe.seed, 2**61 + i))
            x = torch.from_numpy(given.transpose(2, 0, 1)[None].astype(np.float32))
            restored = inference.restore(self.judge, x.to(self.device, self.dtype))
            restored = restored[0].float().permute(1, 2, 0).cpu().numpy()
            name = self.validation.name(i)
            scores.append(evaluation.score(name, restored, target))
            if show is not None and i < self.recipe.validation.samples:
                show(self.step, i, name, given, restored, target)
        score = evaluation.mean(scores)
        return score.psnr, score.ssim

    def save(self) -> None:
        """Write last.pt, whole or not at all. All processes take part."""
        state = {
            "recipe": real_paths(self.recipe).model_dump_json(),
            "weights": self._checksum,
            "step": self.step,
            "best": self.best,
            "network": whole_state(self.network),
            "optimizer": whole_state(self.network, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "random": (random.getstate(), torch.get_rng_state()),
        }
        if self.average is not None:
            state["average"] = whole_state(self.average.module), self.average.n_averaged
        if self.rank == 0:
            self._write(state)
        self.saved = self.step

    def _write(self, state):
        path = self.folder / LAST
        self.record.flush()  # its rows up to here are not written again
        kept = "; the one before is still there" if path.exists() else ""
        with can_be_written(path, kept), replaced(path) as new:
            torch.save(state, new)
        self._last = identity(path)

    def save_weights(self, path: Path) -> None:
        """Write the weights of `judge` as safetensors, whole or not at all."""
        with can_be_written(path):
            save_checkpoint(self.judge, path)

    def _compare(self, path, before, checksum):
        """Raise TrainingError if the checkpoint is of another recipe, or began with other weights."""
        different = differences(before, self.recipe)
        if self._checksum != checksum and before.weights == self.recipe.weights:
            different.append(f"weights, {self.recipe.weights}, has another content than then")
        if different:
            listed = different[:DIFFERENCES_SHOWN]
            if len(different) > len(listed):
                listed.append(f"and {len(different) - len(listed)} more")
            raise TrainingError(f"{path} is of another recipe: {'; '.join(listed)}. So {ANEW}")

    def _take(self, state):
        step, best = state["step"], state["best"]
        if type(step) is not int or type(best) is not float or not 0 < step <= self.recipe.steps:
            raise ValueError(f"step {step!r}, best {best!r}")
        load_whole_state(state["network"], self.network)
        parameters = dict(self.network.named_parameters())
        for name, moments in state["optimizer"]["state"].items():
            for moment in ("exp_avg", "exp_avg_sq"):
                if moments[moment].shape != parameters[name].shape:  # torch would find out in the next step
                    raise ValueError(f"{moment} of {name} is {tuple(moments[moment].shape)}")
        load_whole_state(state["optimizer"], self.network, self.optimizer)
        if self.average is not None:
            weights, count = state["average"]
            load_whole_state(weights, self.average.module)
            self.average.n_averaged.copy_(count)
        self.scaler.load_state_dict(state["scaler"])
        random.setstate(state["random"][0])
        torch.set_rng_state(state["random"][1])
        self.step, self.best, self.saved = step, best, step


def _left_to_the_trainer(over, worker):
    # A terminal and a cluster send their signals to all processes; the step is still to be done. Only when
    # the run is over SIGTERM is for the worker: Python's, which waits for what it leaves behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: over.value and os._exit(0))
