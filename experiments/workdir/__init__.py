"""The work directory: every stage keyed by what it depends on, done once.

    WORKDIR/workdir.json              whose directory this is
    WORKDIR/checkpoints/NAME-KEY/     a finished stage, see `finished`
    WORKDIR/checkpoints/.NAME-KEY.partial/    one in the making, see `partials`
    WORKDIR/report.{json,md,html,csv,tex}, figures/    see `report.rendering`

KEY is a hash of all that the stage's result depends on and of its parents'
keys, so a changed flag leads to other folders for just what depends on it, and
nothing is ever overwritten.
"""
