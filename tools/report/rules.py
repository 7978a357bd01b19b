"""The constants of the rules that templates/rules.md says in words."""

CONFIDENCE = 0.95
ROW_CONFIDENCE = 0.975  # of each of the two tests of a row against the paper
PAPER_RUNS = 10  # "average of ten runs", Table II
PAPER_ROUNDING = 0.005  # averages are printed with two decimals
FEWEST_RUNS = 3  # for a verdict on accuracies, and pairs for one on a difference
FEWEST_SEEDS = 5  # for a verdict on Table I, whose numbers are of one seed
MARGINS = {"MNIST": 0.1, "Fashion-MNIST": 0.3}  # points of test accuracy, by settings.dataset
POWER = 0.8  # of the smallest difference that a number of pairs is said to see
