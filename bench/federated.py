#!/usr/bin/env python3
"""Makes docs/FEDERATED.md and its two figures (gnuplot) from docs/results/federated.csv, which bench/federated.sh writes."""
import csv
import math
import statistics
import subprocess
from collections import defaultdict

# test accuracy of cnn2 with K = 64 on CIFAR-10, IID, 2000 rounds of 11 x 3 x 64 images: arXiv 2607.29674's code
PUBLISHED = {"muon-avgpolar": 85.98, "muon": 85.74, "signmuon": 85.72, "ef21-signmuon": 84.71, "muonusign": 84.56, "ef21-muonsign": 83.99,
             "ef21-muonusign": 83.56, "muonsign": 82.94, "sgd": 81.69, "signsgd": 81.44, "adamw": 77.12}
SPLITS = ["iid", "dirichlet:0.5", "dirichlet:0.1"]

rows = list(csv.DictReader(open("docs/results/federated.csv")))
tests, validation = defaultdict(list), defaultdict(dict)
for row in rows:
    key = row["split"], int(row["clients"]), row["method"]
    if row["on"] == "test":
        tests[key].append(row)
    else:
        validation[key][row["lr"]] = float(row["accuracy"].replace("diverged", "0"))


def scores(method, split="iid", clients=11):
    return [float(row["accuracy"]) for row in tests[split, clients, method]]


def mean(method, split="iid", clients=11):
    return statistics.mean(scores(method, split, clients))


def above(a, b, split="iid"):
    """Is a's mean above b's by more than two standard errors of the difference?"""
    x, y = scores(a, split), scores(b, split)
    error = math.sqrt(statistics.variance(x) / len(x) + statistics.variance(y) / len(y))
    return statistics.mean(x) - statistics.mean(y) > 2 * error


def cell(method, split):
    key = split, 11, method
    if len(tests[key]) < 2:
        return ""
    x = scores(method, split)
    return f"{statistics.mean(x):.2f} ± {statistics.stdev(x):.2f} ({tests[key][0]['lr']})"


def claim(text, published, ours, holds):
    return f"| {text} | {published} | {ours} | {'holds' if holds else 'does not hold'} |"


def wide(method):
    tried = validation["iid", 11, method].values()
    return sum(v > max(tried) - 1 for v in tried)


def skew(methods):
    return [mean(m) - mean(m, "dirichlet:0.1") for m in methods]


table = "\n".join(
    f"| `{m}` | " + " | ".join(cell(m, s) for s in SPLITS) + f" | {float(tests['iid', 11, m][0]['bytes']) / 1e6:.1f} | {PUBLISHED[m]:.2f} |"
    for m in sorted((m for m in PUBLISHED if tests["iid", 11, m]), key=mean, reverse=True))

numbers = [n for n in (1, 3, 5, 7, 11) if tests["iid", n, "signmuon"]]
by_clients = [mean("signmuon", clients=n) for n in numbers]
plain, feedback = ["signmuon", "muonusign", "muonsign"], ["ef21-signmuon", "ef21-muonusign", "ef21-muonsign"]
costs = {m: cost for group in (plain, feedback) for m, cost in zip(group, skew(group))}
claims = "\n".join([
    claim("the sign after the polar factor (`signmuon`) beats the sign before it (`muonusign`), and that beats both (`muonsign`)",
          "85.72, 84.56, 82.94", ", ".join(f"{mean(m):.2f}" for m in plain), above("signmuon", "muonusign") and above("muonusign", "muonsign")),
    claim("SignMuon beats SignSGD beyond the seeds' spread", "by 4.28", f"by {mean('signmuon') - mean('signsgd'):.2f}", above("signmuon", "signsgd")),
    claim("SignMuon comes within 0.5 points of Muon", "0.02 below", f"{mean('muon') - mean('signmuon'):.2f} below",
          mean("muon") - mean("signmuon") <= 0.5),
    claim("the more clients, the better (published for 1, 3, 5, 7 and 9, one seed, withdrawn later)", "76.13, 81.24, 82.87, 83.54, 84.03",
          f"{', '.join(map(str, numbers))}: " + ", ".join(f"{x:.2f}" for x in by_clients), by_clients == sorted(by_clients)),
    claim("SignMuon bears more rates than SignSGD: rates of the lattice within a point of the best", "3 and 2",
          f"{wide('signmuon')} and {wide('signsgd')}", wide("signmuon") > wide("signsgd")),
    claim("label skew costs plain votes several points: " + ", ".join(f"`{m}`" for m in plain) + " from IID to Dirichlet 0.1", "not asked",
          ", ".join(f"{costs[m]:.2f}" for m in plain), min(costs[m] for m in plain) > 2),
    claim("and error feedback almost nothing: " + ", ".join(f"`{m}`" for m in feedback), "not asked",
          ", ".join(f"{costs[m]:.2f}" for m in feedback), max(costs[m] for m in feedback) < 1),
])

beside = "\n".join(f"| {r['model']} | {r['program']} | {r['accuracy']} ± {r['deviation']} | {r['ms_per_round']} | {r['percent_of_peak']} |"
                   for r in csv.DictReader(open("docs/results/federated_pytorch.csv")))
first = tests["iid", 11, "signmuon"][0]
with open("docs/FEDERATED.md", "w") as page:
    page.write(f"""# Federated classification

Written by `python3 bench/federated.py` from [results/federated.csv](results/federated.csv), which holds every run of
`sh bench/federated.sh DIR`. Fashion-MNIST, `cnn2` of width 8, 11 clients with one batch of 64 images each a round, {first["rounds"]} rounds.
Labels are IID, or each class is dealt out by a Dirichlet draw: at 0.1 nine tenths of a client's images are mostly of two or three
classes.

Every method took its rate on every split by the accuracy on 5000 held-out images with seed 1: four rates on the lattice 1, 2, 5,
10, one more wherever the best was at an edge. Then it ran with five seeds at that rate, judged on the test set. An accuracy is
the mean of the last five of 20 evaluations, in percent; ± is the standard deviation over the seeds, in brackets is the rate.
One is above another where their means differ by more than two standard errors of the difference.

| method | IID | Dirichlet 0.5 | Dirichlet 0.1 | MB a client sent | published, CIFAR-10 |
| --- | ---: | ---: | ---: | ---: | ---: |
{table}

The published column is another task (CIFAR-10, K = 64, three batches a round, 2000 rounds): only the order can be compared.

![test accuracy by method and split](federated.svg)

## Claims

| claim | published | ours | verdict |
| --- | --- | --- | --- |
{claims}

![test accuracy of SignMuon by number of clients](federated_clients.svg)

## Beside PyTorch

The same networks, AdamW, 500 rounds of 704 images, five seeds; milliseconds and percent of the FMA peak of two cores
(`python3 bench/federated_pytorch.py DIR`):

| network | program | test accuracy | ms a round | % |
| --- | --- | ---: | ---: | ---: |
{beside}
""")

STYLE = """set terminal svg size 760,{height} font 'sans,13' background 'white'; set output '{name}'; set grid lc rgb '#dddddd'; unset key
"""
dots, ticks, titles = "", [], []
methods = sorted((m for m in PUBLISHED if tests["iid", 11, m]), key=mean)
for i, split in enumerate(SPLITS):
    dots += f"$split{i} << END\n" + "".join(
        f"{mean(m, split)} {y + 0.15 * (1 - i)} {statistics.stdev(scores(m, split))}\n" for y, m in enumerate(methods)
        if len(tests[split, 11, m]) > 1) + "END\n"
names = ", ".join(f"'{m}' {y}" for y, m in enumerate(methods))
colours = "#0072b2 #d55e00 #009e73".split()
plots = ", ".join(f"$split{i} using 1:2:3 with xerrorbars pt 7 ps 0.7 lc rgb '{c}' title '{s}'" for i, (s, c) in enumerate(zip(SPLITS, colours)))
figure = STYLE.format(height=480, name="docs/federated.svg") + dots + f"""set key outside top center horizontal noenhanced
set xlabel 'test accuracy, percent: mean and standard deviation of five seeds'; set ytics ({names}) noenhanced; set yrange [-0.6:{len(methods) - 0.4}]
plot {plots}
"""
figure += STYLE.format(height=360, name="docs/federated_clients.svg") + "$clients << END\n" + "".join(
    f"{n} {mean('signmuon', clients=n)} {statistics.stdev(scores('signmuon', clients=n))}\n" for n in numbers) + f"""END
set xlabel 'clients'; set ylabel 'test accuracy, percent'; set xtics ({', '.join(map(str, numbers))}); set yrange [*:*]; set xrange [0:12]; set ytics auto
plot $clients using 1:2:3 with yerrorlines pt 7 lc rgb '#0072b2' lw 2
"""
subprocess.run(["gnuplot"], input=figure, text=True, check=True)
