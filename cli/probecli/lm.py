"""The lmprobe command. What a command needs is imported when it runs, so `--help` stays fast."""

import click

from probecli.group import ProbeGroup
from probecli.lm_ablate import ablate
from probecli.lm_abliterate import abliterate
from probecli.lm_capture import capture
from probecli.lm_grok import grok
from probecli.lm_lens import lens
from probecli.lm_organism import organism
from probecli.lm_potential import potential
from probecli.lm_probe import probe
from probecli.lm_refusal import refusal
from probecli.lm_reproduce import reproduce
from probecli.lm_terrain import terrain
from probecli.namesake import refuse_namesake


@click.group(cls=ProbeGroup)
@click.version_option(package_name="codecprobe")
def main() -> None:
    """What each layer of a language model carries, and what happens when it is taken away."""
    refuse_namesake()


for command in (capture, probe, terrain, potential, lens, ablate, refusal, abliterate, reproduce, grok, organism):
    main.add_command(command)
