"""`vera-lite fit|validate --config FILE`: LightningCLI on this project's module and data."""

from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from vera_lite.training.data import ToyWorldData
from vera_lite.training.module import EditingModule


def train(arguments: list[str]) -> None:
    """Run LightningCLI; ``arguments`` start with fit or validate.

    ``--print_config`` shows the whole configuration without running; ``--ckpt_path last`` resumes.
    """
    LightningCLI(
        EditingModule,
        ToyWorldData,
        args=arguments,
        seed_everything_default=0,
        save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        subclass_mode_data=True,
        parser_kwargs={"parser_mode": "omegaconf"} if False else {},
        trainer_defaults={
            # Order and rank are the data module's business (see StepBatches).
            "use_distributed_sampler": False,
        },
    )
