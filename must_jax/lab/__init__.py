"""The paper's tables and the demo, on an embedded world or on real datasets.

Nothing else imports this room. Six words are used throughout:

- pre-training: how a network learns what is to be transferred, such as "on
  ImageNet, supervised" or "on pseudo labels of three teachers (MuST)".
- transfer: fine-tuning of a pre-trained network on a downstream image set.
- table: of the paper. Its rows are pre-trainings, its columns transfers.
- scale: what stands for the paper's image sets, and how long all trains: `mini`
  (the world, on a CPU), `photos` (small public sets) or `paper` (`configs/`).
- stage: one piece of work with a directory and a kept result: rendering an
  image set, pre-training, labelling, a transfer.
- experiment: all stages that some tables need at a scale, and their results.

What is where, in the order of a run:

  tables_command    `must-jax tables`, from its options to its exit status
  demo              `must-jax demo`: one small table and its report
  paper_tables      the tables as data, with the published figures
  scales            what a scale has to say; scale_mini, scale_photos and
                    scale_paper say it
  experiment        tables -> stages -> results
  stages            runs stages side by side and keeps what is done
  code_version      which code a stage runs, so that no other's result is taken
  render, train_and_label  the functions of the stages
  stage_costs       what stages cost on a TPU
  result_table      results with deviations and differences; text and Markdown
  report_page       results, curves and pictures as one HTML file
  galleries         the paper's Figures 2 and 4
  table_files       the files that `must-jax tables` ends with
  world             the embedded world: scenes with exact labels
"""
