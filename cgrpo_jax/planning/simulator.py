"""A configuration's generation simulated on a slice: its engines, what they are asked for, and what that takes.

simulated = Simulator(Variants(config), "v6e:4x4").simulate(Lengths.parse("lognormal(mean=1500, sigma=0.8)"))
simulated.at(0.8).seconds
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax

from cgrpo_jax.errors import UserError
from cgrpo_jax.planning import planner, pricing, programs, simulation, tpu_topology, workload
from cgrpo_jax.planning.pricing import Generation
from cgrpo_jax.planning.program_costs import CompiledCosts
from cgrpo_jax.planning.simulation import Call
from cgrpo_jax.planning.workload import Question, Shape
from cgrpo_jax.records import Stage
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runs.variants import Variants
from cgrpo_jax.runtime.chips import Chip

PROMPTS, CRITIQUES = "lognormal(mean=190, sigma=0.4)", "lognormal(mean=450, sigma=0.5, max=1024)"


@dataclasses.dataclass(frozen=True)
class Lengths:
    """From which lengths an iteration is drawn, or the rollouts that it is.

    Attributes:
      texts: a distribution of responses and refinements (`workload.parse`), or a path of rollouts, which then give all.
      prompts, critiques: distributions of the tokens of questions and critiques.
      failed: share of the questions that are refined.
      seed: of the draws.
    """

    texts: str
    prompts: str = PROMPTS
    critiques: str = CRITIQUES
    failed: float = 0.2
    seed: int = 0

    @property
    def are_drawn(self) -> bool:
        """Whether they are drawn, and no rollouts."""
        return "(" in self.texts

    def check(self) -> None:
        """Raises a `UserError` where one of them can't be read."""
        if not 0 <= self.failed <= 1:
            raise UserError(f"--failed {self.failed:g} is no share; use a number from 0 to 1.")
        for one in (self.prompts, self.critiques, *([self.texts] if self.are_drawn else [])):
            workload.parse(one)

    def questions(self, shape: Shape) -> list[Question]:
        """Returns the iteration.

        Raises:
          UserError: a distribution is none, or there are no such rollouts.
        """
        self.check()
        if not self.are_drawn:
            return workload.of_rollouts(self.texts, shape)[0]
        prompts, texts, critiques = map(workload.parse, (self.prompts, self.texts, self.critiques))
        draws = {"prompts": prompts, "texts": texts, "critiques": critiques}
        return workload.drawn(shape, **draws, failed=self.failed, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class Simulated:
    """An iteration's generation on a slice.

    Attributes:
      topology, chip: of the slice, and one of its devices.
      num_chips, num_groups, num_slots: chips, data groups, and slots of each.
      questions: what was written.
      calls: of each engine.
      costs: of the programs of each.
      host: seconds of the host, as in `pricing.Rates`.
    """

    topology: str
    chip: Chip
    num_chips: int
    num_groups: int
    num_slots: int
    questions: Sequence[Question]
    calls: Mapping[str, Sequence[Call]]
    costs: Mapping[str, pricing.Costs]
    host: float = 0.0

    def at(self, hbm: float, *, peaks: bool = False) -> Generation:
        """Returns what it takes at a share of the HBM's bandwidth; arguments of `pricing.rates`."""
        return pricing.generation(
            self.calls, self.costs, pricing.rates(self.chip, hbm=hbm, peaks=peaks, host=self.host)
        )

    def texts(self, stage: Stage) -> int:
        """Returns how many texts of a stage are written."""
        return sum(len(asked.tokens) for one in self.questions for asked in one.all if asked.stage == stage)


class Simulator:
    """A configuration on one slice.

    Args:
      variants: the run.
      name: of the topology.
      say: is called with a line before each program that is compiled.

    Raises:
      UserError: no such topology, a mesh that it does not divide into, or a model that is not described.
    """

    def __init__(self, variants: Variants, name: str, *, say: Callable[[str], None] = lambda text: None):
        self.name, self.say = name, say
        self.chip, _ = tpu_topology.parse(name)

        def make_mesh(**sizes: int) -> jax.sharding.Mesh:
            return tpu_topology.mesh(name, **sizes)

        self.settings = variants.settings(make_mesh)
        self.engines = programs.engines(self.settings)
        self.costs = {
            who: CompiledCosts(engine, planner.kernel_cost, say=lambda line: say(f"{name}: {line}"))
            for who, engine in self.engines.items()
        }

    def simulate(self, lengths: Lengths, *, host: float = 0.0) -> Simulated:
        """Returns the iteration with such lengths; its programs are compiled once it is priced.

        Args:
          lengths: of its texts.
          host: as in `pricing.Rates`.

        Raises:
          UserError: lengths that can't be read, or that exceed a slot.
        """
        questions = lengths.questions(shape_of(self.settings))
        calls = simulation.simulate(
            questions,
            {who: one.engine for who, one in self.engines.items()},
            {who: one.weights for who, one in self.engines.items()},
            writers=writers_of(self.settings),
        )
        settings = self.engines["policy"].settings
        devices = math.prod(settings.mesh.shape.values())
        return Simulated(
            topology=self.name,
            chip=self.chip,
            num_chips=devices // self.chip.devices_per_chip,
            num_groups=settings.num_groups,
            num_slots=settings.num_slots,
            questions=questions,
            calls=calls,
            costs=self.costs,
            host=host,
        )


def writers_of(settings: RunSettings) -> dict[Stage, str | None]:
    """Returns which engine writes each stage; None for an endpoint."""
    critic, refiner = settings.stages.critique.by, settings.stages.refinement.by
    return {
        Stage.RESPONSE: "policy",
        Stage.CRITIQUE: critic if critic in ("policy", "folder") else None,
        Stage.REFINEMENT: refiner if refiner == "refiner" else "policy",
    }


def shape_of(settings: RunSettings) -> Shape:
    """Returns what an iteration of a run does."""
    stages, method = settings.stages, settings.method
    every = (stages.response, stages.critique, stages.refinement)
    return Shape(
        num_questions=settings.questions_per_iteration,
        num_responses=method.num_responses,
        num_critiques=method.num_critiques if stages.critique.num_texts else 0,
        num_refinements=method.refinements_per_critique if stages.refinement.num_texts else 0,
        critiques_all=method.critique_when == "all",
        max_prompt={one.stage: one.max_prompt_length for one in every},
        max_length={one.stage: one.max_length for one in every},
    )
