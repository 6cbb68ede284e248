-- What analysts query. Built anew by every run into catalog.duckdb beside the live one.
-- {name} is replaced by a list of files or a glob; the tables runs, stages, timings,
-- splits, class_counts, near_duplicates, models, encoders, refused, latest_manifests,
-- run_evaluations, members, searches, doubled_embeddings come from small_tables.py.
-- Tables of older versions lack columns (weight, first_seen, accepted), which are null
-- here.

CREATE VIEW images AS
SELECT f.dataset, i.* EXCLUDE (filename)
FROM (
    FROM read_parquet({manifests}, filename = true, union_by_name = true)
    UNION ALL BY NAME SELECT NULL::FLOAT AS weight WHERE false
) AS i
JOIN latest_manifests AS f ON f.manifest_file = i.filename;
COMMENT ON VIEW images IS
'One row per image of each dataset, as of its latest run.';

CREATE VIEW quarantine AS
SELECT
    f.dataset, q.uri, q.image_id, q.reason, q.detail, NULL AS encoder, q.first_seen
FROM (
    FROM read_parquet({quarantines}, filename = true, union_by_name = true)
    UNION ALL BY NAME SELECT NULL::TIMESTAMPTZ AS first_seen WHERE false
) AS q
JOIN latest_manifests AS f ON f.quarantine_file = q.filename
UNION ALL
SELECT
    i.dataset, i.uri, i.image_id, r.reason, r.detail, e.encoder, r.first_seen
FROM refused AS r
JOIN images AS i USING (image_id)
JOIN encoders AS e USING (encoder_key);
COMMENT ON VIEW quarantine IS
'One row per input that was refused, by ingest or (with encoder) when it was decoded,
and since when for that reason.';

CREATE VIEW duplicates AS
SELECT f.dataset, d.* EXCLUDE (filename)
FROM read_parquet({duplicates}, filename = true) AS d
JOIN latest_manifests AS f ON f.duplicates_file = d.filename;
COMMENT ON VIEW duplicates IS
'One row per file with the very bytes of another, kept_uri, which is in images.';

CREATE VIEW embeddings AS
SELECT e.encoder, p.encoder AS encoder_key, p.image_id, p.embedding
FROM read_parquet(
    {embeddings}, hive_partitioning = true, hive_types_autocast = false,
    filename = true, file_row_number = true
) AS p
JOIN encoders AS e ON e.encoder_key = p.encoder
ANTI JOIN doubled_embeddings AS d ON d.file = p.filename AND d.row = p.file_row_number;
COMMENT ON VIEW embeddings IS
'One row per encoder and image: embedding is FLOAT[width]. Shared by all datasets.';

CREATE TABLE metrics AS
SELECT
    r.run_id, r.dataset, m.encoder, m.head, m.split, m.metric,
    m.value, m.low, m.high, m.images, m.chosen, r.role, m.family,
    m.encoder_key, m.evaluation
FROM run_evaluations AS r
JOIN read_parquet({metrics}) AS m USING (evaluation);
COMMENT ON TABLE metrics IS
'One row per run, encoder, head, split and metric; low and high bound a 95 % interval.
Only the chosen configuration has test rows. Where cross-validation chose it, it has rows
of the split folds: training images, each scored by a head that did not learn from it.';

CREATE VIEW predictions AS
SELECT
    r.dataset, r.run_id, r.encoder, r.head, r.role, p.image_id, p.split, p.label,
    p.predicted, p.label = p.predicted AS correct, p.confidence, p.accepted,
    p.set_size, p.in_set, p.probabilities, p.evaluation
FROM (
    FROM read_parquet({predictions}, union_by_name = true)
    UNION ALL BY NAME
    SELECT
        NULL::BOOLEAN AS accepted, NULL::INTEGER AS set_size, NULL::BOOLEAN AS in_set
    WHERE false
) AS p
JOIN run_evaluations AS r USING (evaluation)
WHERE r.latest;
COMMENT ON VIEW predictions IS
'One row per encoder, chosen head and validation or test image, as of the latest run.
Confidence is calibrated; the label set of an image has set_size labels, in_set tells
whether the right one is among them.';
