"""Models of plain torch in which it is not obvious what feeds the logits. Inputs ``(B, 8)``, classes 0 to 3."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

CLASSES, WIDTH = 4, 16


def body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU())


class Plain(nn.Module):
    """A classifier; ``head`` after ``body``, and ``last`` on the logits."""

    def __init__(self, head: nn.Module | None = None, last=lambda logits: logits) -> None:
        super().__init__()
        self.body, self.fc, self.last = body(), head or nn.Linear(WIDTH, CLASSES), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fc(self.body(x)))


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear, trained: bool) -> None:
        super().__init__()
        self.base_layer, self.lora_A = base, nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)
        if not trained:
            nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 0.5 * self.lora_B(self.lora_A(x))


class OtherLoRA(nn.Module):
    """The same by other names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.down, self.up = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 2), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


class Conv1D(nn.Module):
    """GPT-2's linear layer with a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(WIDTH, CLASSES)), nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], CLASSES)


class Cosine(nn.Module):
    """Normalised features and weights in a module of its own, as in ArcFace."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return 16 * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = body(), nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.body(x), self.weight)


class Prototypes(nn.Module):
    """Squared distances from prototypes, by differences: no product with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.weight).square().sum(-1)


class SkipHead(nn.Module):
    """Logits from the features and, past them, from the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc, self.skip = body(), nn.Linear(WIDTH, CLASSES), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x)) + self.skip(x)


class Scaled(nn.Module):
    """Logits by a learned temperature; ``of_item``: another one for each item, from its features."""

    def __init__(self, of_item: bool = False) -> None:
        super().__init__()
        self.body, self.fc, self.of_item = body(), nn.Linear(WIDTH, CLASSES), of_item
        self.log_scale = nn.Linear(WIDTH, 1) if of_item else nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return self.fc(z) * (self.log_scale(z) if self.of_item else self.log_scale).exp()


class Bilinear(nn.Module):
    """Two bodies feed one head."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = body(), body(), nn.Bilinear(WIDTH, WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.left(x), self.right(x))
        return logits


class InputPastHead(nn.Module):
    """Adds columns of the input to what its head gives."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = body(), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x)) + x[:, :CLASSES]


class TwoHeads(nn.Module):
    def __init__(self, other: int, first: bool = True) -> None:
        super().__init__()
        self.body, self.digit, self.other, self.first = (
            body(),
            nn.Linear(WIDTH, CLASSES),
            nn.Linear(WIDTH, other),
            first,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        z = self.body(x)
        return (self.digit(z), self.other(z)) if self.first else (self.other(z), self.digit(z))


class MeanOfHeads(TwoHeads):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return (self.digit(self.body(x)) + self.other(self.body(x))) / 2


class Teacher(nn.Module):
    """The teacher is registered last, and does not run in evaluation."""

    def __init__(self, both: bool = False) -> None:
        super().__init__()
        self.student, self.fc = body(), nn.Linear(WIDTH, CLASSES)
        self.teacher, self.both = nn.Sequential(nn.Linear(8, WIDTH), nn.Linear(WIDTH, CLASSES)), both

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.fc(self.student(x))
        return (logits, self.teacher(x)) if self.both else logits


class SimCLR(nn.Module):
    def __init__(self, width: int = 12, normalised: bool = False) -> None:
        super().__init__()
        self.encoder = body()
        self.g = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, width))
        self.normalised = normalised

    def forward(self, x: Tensor) -> Tensor:
        z = self.g(self.encoder(x))
        return nn.functional.normalize(z) if self.normalised else z


class BYOL(nn.Module):
    def __init__(self, both: bool) -> None:
        super().__init__()
        self.online, self.target, self.both = body(), body(), both
        self.projector = nn.Sequential(nn.Linear(WIDTH, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 12))
        self.target_projector = nn.Linear(WIDTH, 12)
        self.predictor = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        prediction = self.predictor(self.projector(self.online(x)))
        return (prediction, self.target_projector(self.target(x))) if self.both else prediction


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 12), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"left_embeds": self.left(x), "right_embeds": self.right(x)}


class Residual(nn.Module):
    """An encoder without a head."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.a, self.up, self.down = nn.Linear(8, width), nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).relu()
        return z + self.down(self.up(z).relu())


class Tokens(nn.Module):
    """A head on every token; the model reads one of them, or their mean."""

    def __init__(self, read) -> None:
        super().__init__()
        self.embed, self.score, self.read = nn.Linear(2, WIDTH), nn.Linear(WIDTH, CLASSES), read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.score(self.embed(x.view(len(x), 4, 2)).relu()))


class Images(nn.Module):
    """A head that is a convolution of one place."""

    def __init__(self, relu: bool = False) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, WIDTH, 1), nn.Conv2d(WIDTH, CLASSES, 1)
        self.after = nn.Sequential(nn.ReLU() if relu else nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.head(self.conv(x.view(len(x), 1, 2, 4)).relu()))


class Recurrent(nn.Module):
    def __init__(self, head: bool = True) -> None:
        super().__init__()
        self.rnn, self.fc = nn.LSTM(2, WIDTH, batch_first=True), nn.Linear(WIDTH, CLASSES) if head else None

    def forward(self, x: Tensor):
        out = self.rnn(x.view(len(x), 4, 2))
        return out if self.fc is None else self.fc(out[0][:, -1])


class InAList(nn.Module):
    """Heads of several tasks, of which one runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = body(), nn.ModuleList([nn.Linear(WIDTH, CLASSES) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[1](self.body(x))


def quantised() -> nn.Module:
    model = torch.ao.quantization.quantize_dynamic(Plain().eval(), {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(model.fc, nn.Linear)
    return model


def weight_norm() -> nn.Linear:
    return parametrizations.weight_norm(nn.Linear(WIDTH, CLASSES))
