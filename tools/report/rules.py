"""1. **Number of a run**: `selected_test_accuracy_pct` of its log, the epoch that the protocol selects. *Published*
   selects as the released scripts did, often by the best test accuracy; *corrected* selects on held-out training
   images. Caltech-101, *published*: the best accuracy on the held-out part, which is what the paper prints there. A
   diverged run counts.
2. **Intervals** are Student's t intervals over seeds (weights, order, augmentation, dropout) on one fixed test set.
   They say what another seed would give, nothing of another test set. ± is the sample standard deviation of single
   runs.
3. **Told apart from the paper?** (published protocol, at least 3 runs, rows with a printed average of ten.) By the
   mean: the paper's average lies outside the 97.5 % prediction interval for the average of ten further runs of ours,
   t(n − 1) · s · √(1/n + 1/10), widened by 0.005 for the paper's rounding; s is at least the weight of one test
   image. This half width is the *tolerance*. By the best: k of our n runs exceed the paper's best of ten, and for n +
   10 draws from one population the chance of k or more is at most 2.5 %: C(n, k) / C(n + 10, k). Either tells apart;
   together they err in at most one row of twenty if the paper's runs scatter as ours (it prints no spread). *Not told
   apart* is no proof of sameness: the tolerance says how far off the paper could be unnoticed. Rows of arXiv v2 print
   one number and are not compared; Table III prints no number of runs, and ten are assumed.
4. **Spinal against FC**: runs of one seed share batches, augmentation and the trunk's first weights; Spinal minus FC
   is taken seed by seed, at least 3 pairs. *Decision, alone*: the 95 % interval excludes 0. *Decision, Holm*: still
   so at 5 % after Holm's step-down correction over all differences of the same table. Sentences rest on Holm.
   *Undecided* means that these runs do not tell, not that there is no difference.
5. **Equivalent** (two one-sided t tests at 5 %: the 90 % interval lies inside the margin): margins 0.1 points on
   MNIST and 0.3 on Fashion-MNIST. They are below the scatter of single runs of the small CNN there (about 0.1 to 0.2
   and 0.3 to 0.5) and a third or less of the smallest lead that the paper prints for it (0.34 and 1.72), so that a
   shift inside them changes no statement on that network. For VGG-5 the paper prints leads of 0.00 and 0.17, which
   these margins cannot resolve. Other sets have no margin: nothing is called equivalent there.
6. **Table I** prints one seed: *within our spread* if it lies between the lowest and the highest of at least 5 seeds
   of ours.
7. **No row of the paper**: runs that depart from its settings (precision other than fp32 included, whatever the log
   calls a departure), on other data, or on a part of the data. They stand in tables of their own and are never pooled
   with rows.

Written on 21 November 2026, after the small CNN's rows of MNIST and Fashion-MNIST, the tutorial's CNN, Table I and
five of ten seeds of the FC head without dropout had been seen; before any other row, the dropout series or VGG-5
beyond six epochs had been.
"""

from __future__ import annotations

CONFIDENCE = 0.95
ROW_CONFIDENCE = 0.975  # of each of the two tests of a row against the paper
PAPER_RUNS = 10  # "average of ten runs", Table II
PAPER_ROUNDING = 0.005  # averages are printed with two decimals
FEWEST_RUNS = 3  # for a verdict on accuracies, and pairs for one on a difference
FEWEST_SEEDS = 5  # for a verdict on Table I, whose numbers are of one seed
MARGINS = {"MNIST": 0.1, "Fashion-MNIST": 0.3}  # points of test accuracy, by settings.dataset
POWER = 0.8  # of the smallest difference that a number of pairs is said to see
