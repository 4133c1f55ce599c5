"""The training loop: one process, or as many as torchrun starts."""

import contextlib
import copy
import csv
import io
import math
import os
import random
import signal
import threading
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from tqdm import tqdm

from .. import evaluation, inference
from ..checkpoints import save_checkpoint
from ..modules import MIRNet
from ..reference import MSRB
from .ablations import ablated
from .data import Order, Patches, Photos, generator
from .distributed import Replica, load_whole_state, mean, rank_and_world, shard, whole_state
from .recipe import Recipe

LAST, BEST, LOG = "last.pt", "best.safetensors", "log.csv"
COLUMNS = ("step", "loss", "learning_rate", "psnr", "ssim")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is safe."""


def charbonnier(output, target, epsilon):
    """Mean of sqrt((output - target)**2 + epsilon**2) (arXiv 2003.06792, equation 5)."""
    return ((output - target).square() + epsilon**2).sqrt().mean()


def learning_rate(recipe, step):
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
            validation) and log.csv.
        device: of this process.
        make: class of the network; MIRNet unless told.
        dtype: of weights and photos.

    Raises:
        ImageError: the recipe's photos are missing or do not fit together.
        TrainingError: the checkpoint in the folder is of another recipe.
    """

    def __init__(self, recipe, folder, device="cpu", make=MIRNet, dtype=torch.float32):
        self.recipe, self.folder, self.device, self.dtype = recipe, Path(folder), torch.device(device), dtype
        self.rank, self.world = rank_and_world()
        if recipe.batch % (self.world * recipe.accumulate):
            raise TrainingError(
                f"batch, {recipe.batch}, must be a multiple of processes times accumulate, "
                f"{self.world} x {recipe.accumulate}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.patches = Patches(recipe.train, recipe.patch, recipe.seed)
        self.validation = recipe.validation and Photos(recipe.validation.source)
        random.seed(recipe.seed)
        np.random.seed(recipe.seed)
        torch.manual_seed(recipe.seed)
        network = ablated(make, **recipe.ablation.model_dump())(**recipe.network.model_dump())
        self.network = network.to(self.device, dtype)
        self.judge = copy.deepcopy(self.network).eval()
        self.average = None
        if recipe.ema is not None:
            self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
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
        self.step, self.best, self._stop = 0, -math.inf, False
        self._resume()

    def run(self, progress=True):
        """Train to the last step; the losses of the steps, all processes' mean.

        SIGINT (Ctrl-C) and SIGTERM end the step and save a checkpoint first; a second one does not.

        Raises:
            KeyboardInterrupt: after SIGINT or SIGTERM.
            TrainingError: a loss is not finite, or a checkpoint cannot be written.
            ImageError: a photo is damaged, or of another size than its partner.
        """
        recipe, losses = self.recipe, []
        order = Order(self.step, recipe.steps, recipe.batch, self.rank, self.world)
        loader = DataLoader(
            self.patches,
            batch_sampler=order,
            num_workers=recipe.workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=recipe.workers > 0,
        )
        bar = tqdm(total=recipe.steps, initial=self.step, disable=not progress or self.rank > 0, unit="step")
        self.network.train()
        with bar, self._stoppable():
            for given, target, names in loader:
                loss, stop = self._update(given, target, names)
                losses.append(loss)
                self.step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}")
                self._after(loss)
                if stop:
                    self.save()
                    raise KeyboardInterrupt
        return losses

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
        psnr = ssim = ""
        if self.validation and (end or self.step % recipe.validation.every == 0):
            kept = self.network if self.average is None else self.average.module
            weights = whole_state(kept)
            if self.rank == 0:
                self.judge.load_state_dict(weights)
                psnr, ssim = self.validate()
                if psnr > self.best:
                    self.best = psnr
                    self.save_weights(self.folder / BEST)
        if self.rank == 0:
            self._log(loss, psnr, ssim)
        if end or self.step % recipe.save_every == 0:
            self.save()

    def validate(self):
        """(PSNR in dB, SSIM) of `judge`, means over the validation photos, as `mirnet-fast evaluate` prints.

        Raises:
            ValueError: a photo is smaller than the window of SSIM.
        """
        scores = []
        for i in range(len(self.validation)):
            given, target = self.validation.pair(i, generator(self.recipe.seed, 2**61 + i))
            x = torch.from_numpy(given.transpose(2, 0, 1)[None].astype(np.float32))
            restored = inference.restore(self.judge, x.to(self.device, self.dtype))
            restored = restored[0].float().permute(1, 2, 0).cpu().numpy()
            scores.append(evaluation.score(self.validation.name(i), restored, target))
        score = evaluation.mean(scores)
        return score.psnr, score.ssim

    def _log(self, loss, psnr, ssim):
        path = self.folder / LOG
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerow((self.step, repr(loss), learning_rate(self.recipe, self.step - 1), psnr, ssim))

    def save(self):
        """Write last.pt, whole or not at all. All processes take part."""
        state = {
            "recipe": self.recipe.model_dump_json(),
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
            write_whole(self.folder / LAST, lambda file: torch.save(state, file))

    def save_weights(self, path):
        """Write the weights of `judge` as safetensors, whole or not at all."""
        try:
            save_checkpoint(self.judge, path)
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {error}") from error

    def _resume(self):
        path = self.folder / LAST
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=False)
        if Recipe.model_validate_json(state["recipe"]) != self.recipe:
            raise TrainingError(
                f"{path} is of another recipe; train in another folder, or remove it to start anew"
            )
        load_whole_state(state["network"], self.network)
        load_whole_state(state["optimizer"], self.network, self.optimizer)
        if self.average is not None:
            weights, count = state["average"]
            load_whole_state(weights, self.average.module)
            self.average.n_averaged.copy_(count)
        self.scaler.load_state_dict(state["scaler"])
        random.setstate(state["random"][0])
        torch.set_rng_state(state["random"][1])
        self.step, self.best = state["step"], state["best"]
        self._forget_later_rows()

    def _forget_later_rows(self):
        """Rows of the log from after the checkpoint: those steps will be done again."""
        path = self.folder / LOG
        if self.rank > 0 or not path.exists():
            return
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= self.step]

        def write(file):
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
            file.write(text.getvalue().encode())

        write_whole(path, write)


def write_whole(path, write):
    """Call write(file) on a new file that takes the place of `path` only once it is safe on the disk.

    Raises:
        TrainingError: it cannot be written; what was at `path` is as it was.
    """
    path = Path(path)
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        new.unlink(missing_ok=True)
        kept = "; the one before is still there" if path.exists() else ""
        raise TrainingError(f"{path} cannot be written: {error}{kept}") from error
