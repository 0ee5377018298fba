"""Updates of the Dreamer V3 mode of NM512/r2dreamer (torch), imported from a checkout, on random data.

Started by `python -m benchmarks.run --peer r2dreamer=CHECKOUT`; see serve.py for what it says and hears. In float32 the
peer's float16 autocast and its gradient scaler are off; with bfloat16 on a GPU both stay as the peer has them.
"""
# pyright: reportMissingImports=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false

import contextlib
import sys
from importlib.metadata import version

from serve import answers, arguments, serve, timed

args = arguments()
say = answers()
sys.path.insert(0, str(args.path))

import dreamer  # noqa: E402
import gymnasium  # noqa: E402
import hydra  # noqa: E402
import torch  # noqa: E402
from tensordict import TensorDict  # noqa: E402

torch.set_float32_matmul_precision("high")  # as the peer's own script does
device = torch.device({"cpu": "cpu", "gpu": "cuda:0"}[args.device])
if args.dtype == "float32":
    dreamer.autocast = lambda **_: contextlib.nullcontext()
    dreamer.GradScaler = lambda: torch.amp.GradScaler(device=device.type, enabled=False)

overrides = [
    f"device={device}", "env=atari100k", f"batch_size={args.batch}", f"batch_length={args.length}", "logdir=unused",
    "model.rep_loss=dreamer",
    f"model.compile={args.device == 'gpu'}",  # compiling takes it more than seven minutes on two CPU cores
]  # fmt: skip
if args.setting == "a":
    overrides += [
        f"env.{side}.{keys}" for side in ("encoder", "decoder") for keys in ("mlp_keys=vector", 'cnn_keys="$^"')
    ]
    overrides += [
        f"model.{name}={size}" for name, size in dict(deter=512, hidden=64, discrete=4, depth=4, units=64).items()
    ]
with hydra.initialize_config_dir(version_base=None, config_dir=str(args.path.resolve() / "configs")):
    config = hydra.compose(config_name="configs", overrides=overrides).model

if args.setting == "a":
    sensor = {"vector": gymnasium.spaces.Box(-float("inf"), float("inf"), (16,))}
else:
    sensor = {"image": gymnasium.spaces.Box(0, 255, (64, 64, 3), dtype="uint8")}
action = gymnasium.spaces.Discrete(6)
action.discrete, action.n = True, int(action.n)  # how the peer knows a discrete space
agent = dreamer.Dreamer(config, gymnasium.spaces.Dict(sensor), action).to(device)


class Replay:
    """Always the same random batch; no flag is set, as on our side."""

    def __init__(self, batch, length):
        flags = torch.zeros(batch, length, 1, dtype=torch.bool)
        entries = dict(
            action=torch.nn.functional.one_hot(torch.randint(6, (batch, length)), 6).float(),
            reward=torch.randn(batch, length, 1), is_first=flags[..., 0], is_last=flags, is_terminal=flags.clone(),
        )  # fmt: skip
        if args.setting == "a":
            entries["vector"] = torch.randn(batch, length, 16)
        else:
            entries["image"] = torch.randint(0, 255, (batch, length, 64, 64, 3), dtype=torch.uint8)
        self.entries = TensorDict(entries, batch_size=(batch, length)).to(device)
        stoch = torch.zeros(batch, config.rssm.stoch, config.rssm.discrete, device=device)
        self.latent = stoch, torch.zeros(batch, config.rssm.deter, device=device)

    def sample(self):
        return self.entries.clone(), None, self.latent

    def update(self, *_):
        """Refreshed latents are not kept."""


replay = Replay(args.batch, args.length)


def update():
    metrics = agent.update(replay)
    float(metrics["opt/loss"])
    if device.type == "cuda":
        torch.cuda.synchronize()


update()
update()
versions = {name: version(name) for name in ("torch", "tensordict")}
serve(
    say,
    {"parameters": sum(x.numel() for x in agent._named_params.values()), "versions": versions},
    {"update": timed(update)},
)
