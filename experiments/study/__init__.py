"""A study: one problem, several strategies, several seeds.

| file | what it holds |
|---|---|
| `setup` | data and model, and what is to be forgotten |
| `stages` | a stage: what it depends on, and how it is carried out |
| `training` | the stages that make models: sources, strategies |
| `shadows` | the stages that make models to attack, or to attack by |
| `degrees` | the stages that measure unlearning degrees |
| `engine` | who carries stages out: this process, or any `Executor` |
| `planning` | the stages of a study |
| `results` | from finished stages to numbers, and to a report |
| `lineage` | a checkpoint and its relatives |
| `study` | from what was asked to a page |
| `provenance` | versions, device and commit |
"""
