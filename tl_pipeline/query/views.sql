-- What analysts query: views over run records (JSON) and Parquet, nothing is copied.
-- {files of ...} is replaced by the files that are read, {here} by a condition that
-- refuses to read another store than the one that the catalogue lies in. The few rows
-- of the tables come from computed.py.
-- Of tables that older versions wrote, columns that they lack are null.

CREATE TABLE built (name VARCHAR, digest VARCHAR);
COMMENT ON TABLE built IS
'What this file was built of: of the same statements nothing is made again.';

CREATE TABLE datasets (
    dataset VARCHAR, run_id VARCHAR, manifest VARCHAR, last_manifest VARCHAR
);
COMMENT ON TABLE datasets IS
'One row per dataset: its latest finished run, or batch where it has no run, and the
manifest of that; last_manifest is of a later run if that was refused.';

CREATE TABLE models (
    name VARCHAR, version BIGINT, aliases VARCHAR[], encoder VARCHAR,
    encoder_key VARCHAR, head VARCHAR, folds_accuracy DOUBLE,
    validation_accuracy DOUBLE, test_accuracy DOUBLE, folder VARCHAR, model VARCHAR,
    control BOOLEAN, run_id VARCHAR, registered TIMESTAMP
);
COMMENT ON TABLE models IS
'One row per registered model version; aliases may hold champion.';

CREATE TABLE current_evaluations (run_id VARCHAR, evaluation VARCHAR);
COMMENT ON TABLE current_evaluations IS
'One row per evaluation in the view predictions, and the last run that had it.';

CREATE TABLE encoders (
    encoder_key VARCHAR, encoder VARCHAR, label VARCHAR, backbone VARCHAR,
    layer VARCHAR, weights VARCHAR, weights_sha256 VARCHAR, precision VARCHAR,
    width BIGINT, control BOOLEAN
);
COMMENT ON TABLE encoders IS
'One row per encoder that has embeddings in the store, and per joint of several, which has
none of its own. encoder is unique: its label, and the beginning of its key where labels
are equal. control: it is untrained.';

CREATE TABLE refused (
    encoder_key VARCHAR, image_id VARCHAR, reason VARCHAR, detail VARCHAR,
    first_seen TIMESTAMP
);
COMMENT ON TABLE refused IS
'One row per encoder and image that could not be decoded. Times are UTC.';

CREATE TABLE doubled_embeddings (encoder_key VARCHAR, file VARCHAR, "row" BIGINT);
COMMENT ON TABLE doubled_embeddings IS
'One row per embedding that another part file gives too; the view embeddings leaves it
out.';

CREATE VIEW records AS
SELECT
    document->>'$.run_id' AS run_id,
    document->>'$.dataset' AS dataset,
    coalesce(d.run_id = (document->>'$.run_id'), false) AS latest,
    document
FROM (SELECT content::JSON AS document FROM {files of records} WHERE {here}) AS r
LEFT JOIN datasets AS d ON d.dataset = (document->>'$.dataset');
COMMENT ON VIEW records IS
'One row per finished run: its whole record as JSON.';

CREATE VIEW run_evaluations AS
SELECT
    r.run_id, r.dataset, e->>'$.evaluation' AS evaluation,
    coalesce(replace(e->>'$.encoder', n.label, n.encoder), e->>'$.encoder') AS encoder,
    nullif(e->>'$.encoder_key', '') AS encoder_key, e->>'$.head' AS head,
    e->>'$.role' AS role, (e->>'$.role') = 'control' AS control,
    e->>'$.untrained' AS untrained, e->>'$.by_image' AS by_image, r.latest
FROM (
    -- qualified, as macros that read it have parameters of such names
    SELECT DISTINCT
        d.run_id, d.dataset, d.latest, unnest(d.document->'$.results[*]') AS e
    FROM records AS d
) AS r
LEFT JOIN encoders AS n ON n.encoder_key = (e->>'$.encoder_key');
COMMENT ON VIEW run_evaluations IS
'One row per run and evaluation: best, candidate or control. untrained and by_image are
the evaluations of its controls: the same head on the untrained network, and on a split
image by image.';

CREATE VIEW runs AS
SELECT
    r.run_id, r.dataset, document->>'$.manifest' AS manifest,
    coalesce(replace(b.encoder, n.label, n.encoder), b.encoder) AS best_encoder,
    b.encoder_key AS best_encoder_key, b.head AS best_head,
    (document->>'$.started')::TIMESTAMP AS started,
    (document->>'$.finished')::TIMESTAMP AS finished,
    (document->>'$.images')::BIGINT AS images,
    (document->>'$.quarantined')::BIGINT AS quarantined,
    (document->>'$.duplicates')::BIGINT AS duplicates,
    (
        epoch_us((document->>'$.finished')::TIMESTAMP)
        - epoch_us((document->>'$.started')::TIMESTAMP)
    ) / 1e6 AS seconds,
    b.test_accuracy, (document->>'$.gain.value')::DOUBLE AS gain_by_transfer
FROM records AS r
LEFT JOIN (
    SELECT DISTINCT
        run_id, e->>'$.encoder' AS encoder,
        nullif(e->>'$.encoder_key', '') AS encoder_key,
        e->>'$.head' AS head, (e->>'$.test.value')::DOUBLE AS test_accuracy
    FROM (SELECT run_id, unnest(document->'$.results[*]') AS e FROM records)
    WHERE (e->>'$.role') = 'best'
) AS b USING (run_id)
LEFT JOIN encoders AS n ON n.encoder_key = b.encoder_key;
COMMENT ON VIEW runs IS
'One row per finished run. Times are UTC.';

CREATE VIEW stages AS
SELECT
    run_id, dataset, s->>'$.stage' AS stage, s->>'$.subject' AS subject,
    s->>'$.reason' AS reason, (s->>'$.cached')::BOOLEAN AS cached,
    (s->>'$.seconds')::DOUBLE AS seconds
FROM (SELECT run_id, dataset, unnest(document->'$.steps[*]') AS s FROM records);
COMMENT ON VIEW stages IS
'One row per run, stage and subject: what was cached, what ran, and why.';

CREATE VIEW timings AS
SELECT
    t.run_id, t.dataset, coalesce(e.encoder, t.encoder) AS encoder, t.encoder_key,
    coalesce(e.control, false) AS control,
    CASE
        WHEN (forward + transfer) / greatest(forward + transfer + idle, 1e-9) >= {busy}
            THEN 'the network'
        WHEN decode >= read AND decode >= write THEN 'decoding'
        WHEN read >= write THEN 'reading'
        ELSE 'writing'
    END AS bottleneck,
    images, read, decode, transfer, forward, write, idle, elapsed
FROM (
    SELECT
        run_id, dataset, s->>'$.subject' AS encoder, s->>'$.keys.encoder' AS encoder_key,
        (s->>'$.units')::BIGINT AS images,
        (s->>'$.timings.read')::DOUBLE AS read,
        (s->>'$.timings.decode')::DOUBLE AS decode,
        (s->>'$.timings.transfer')::DOUBLE AS transfer,
        (s->>'$.timings.forward')::DOUBLE AS forward,
        (s->>'$.timings.write')::DOUBLE AS write,
        (s->>'$.timings.idle')::DOUBLE AS idle,
        (s->>'$.timings.elapsed')::DOUBLE AS elapsed
    FROM (SELECT run_id, dataset, unnest(document->'$.steps[*]') AS s FROM records)
    WHERE (s->>'$.timings') IS NOT NULL
) AS t
LEFT JOIN encoders AS e USING (encoder_key);
COMMENT ON VIEW timings IS
'One row per run and encoder that embedded images: where its seconds went; all but
elapsed add up all threads, idle is the network''s.';

CREATE VIEW splits AS
SELECT
    run_id, dataset, split,
    (size->>'$.images')::BIGINT AS images,
    (size->>'$.groups')::BIGINT AS groups,
    (size->>'$.share')::DOUBLE AS share,
    (size->>'$.distance')::DOUBLE AS distance_from_train,
    (since->>'$.entered')::BIGINT AS entered,
    (since->>'$.left')::BIGINT AS removed,
    CASE WHEN since IS NOT NULL THEN coalesce(
        list_sum(json_extract(since, '$.came_from.*')::BIGINT[]), 0
    )::BIGINT END AS moved_in,
    (since->>'$.relabelled')::BIGINT AS relabelled
FROM (
    SELECT
        run_id, dataset, split,
        json_extract(document, '$.split_report.splits.' || split) AS size,
        json_extract(document, '$.split_report.since.' || split) AS since
    FROM (
        SELECT run_id, dataset, document,
            unnest(json_keys(document, '$.split_report.splits')) AS split
        FROM records
    )
);
COMMENT ON VIEW splits IS
'One row per run and split: its size, how far its class shares are from those of train
(total variation distance), and what changed since the run before, null where that is
unknown.';

CREATE VIEW class_counts AS
SELECT
    dataset, label, split, images,
    coalesce(images / nullif(sum(images) OVER (PARTITION BY dataset, split), 0), 0)
        AS share
FROM (
    SELECT
        dataset, c.key AS label, unnest(['train', 'validation', 'test']) AS split,
        unnest(c.value) AS images
    FROM (
        -- no json_each, which DuckDB 1.1 has not
        SELECT dataset, unnest(map_entries(
            (document->'$.split_report.classes')::MAP(VARCHAR, BIGINT[])
        )) AS c
        FROM records
        WHERE latest
    )
);
COMMENT ON VIEW class_counts IS
'One row per dataset, class and split, as of its latest run; share is that of the
split''s images.';

CREATE VIEW members AS
SELECT DISTINCT
    e->>'$.evaluation' AS evaluation, m->>'$.evaluation' AS member,
    coalesce(k.encoder, m->>'$.encoder') AS encoder, k.encoder_key,
    coalesce(k.control, false) AS control,
    m->>'$.head' AS head, (m->>'$.times')::BIGINT AS times
FROM (
    SELECT e, unnest(e->'$.members[*]') AS m
    FROM (SELECT unnest(document->'$.results[*]') AS e FROM records)
) AS r
LEFT JOIN (
    SELECT DISTINCT evaluation, encoder, encoder_key, control FROM run_evaluations
) AS k ON k.evaluation = (m->>'$.evaluation');
COMMENT ON VIEW members IS
'One row per evaluation of averaged heads and head: member is the evaluation of that
head, which counts so many times.';

CREATE VIEW searches AS
SELECT
    r.run_id, r.dataset, s.encoder, k.encoder_key, coalesce(e.control, false) AS control,
    s.head, s.round, s.images, s.folds, s.accuracy, s.deviation, s.log_loss, s.chosen,
    s.family, s.trial, s.search
FROM (
    SELECT DISTINCT run_id, dataset, s->>'$.keys.search' AS search
    FROM (SELECT run_id, dataset, unnest(document->'$.steps[*]') AS s FROM records)
    WHERE (s->>'$.keys.search') IS NOT NULL
) AS r
JOIN {files of searches} AS s USING (search)
LEFT JOIN (
    SELECT run_id, encoder, any_value(encoder_key) AS encoder_key
    FROM run_evaluations
    GROUP BY run_id, encoder HAVING count(DISTINCT encoder_key) = 1
) AS k ON k.run_id = r.run_id AND k.encoder = s.encoder
LEFT JOIN encoders AS e ON e.encoder_key = k.encoder_key;
COMMENT ON VIEW searches IS
'One row per run, search, round and configuration: how it did on images that it did not
learn from, in folds (deviation over them) or on validation.';

CREATE VIEW training_curves AS
SELECT r.run_id, r.dataset, r.subject, c.* EXCLUDE (filename, encoder)
FROM (
    SELECT DISTINCT
        run_id, dataset, s->>'$.subject' AS subject, s->>'$.keys.finetuned' AS finetuned
    FROM (SELECT run_id, dataset, unnest(document->'$.steps[*]') AS s FROM records)
    WHERE (s->>'$.keys.finetuned') IS NOT NULL
) AS r
JOIN {files of curves} AS c USING (finetuned);
COMMENT ON VIEW training_curves IS
'One row per run, fine-tuning, epoch and split: mean loss (nats) and accuracy. Those of
train are of augmented images, while the network learned from them.';

CREATE VIEW images AS
SELECT d.dataset, i.* EXCLUDE (filename, "group"), i."group" AS group_id
FROM {files of manifests} AS i
JOIN datasets AS d ON parse_path(i.filename)[-2] = d.manifest
WHERE {here};
COMMENT ON VIEW images IS
'One row per image of each dataset, as of its latest run.';

CREATE VIEW quarantine AS
SELECT
    d.dataset, q.uri, q.image_id, q.reason, q.detail, NULL AS encoder,
    NULL AS encoder_key, false AS control, make_timestamp(epoch_us(q.first_seen))
        AS first_seen
FROM {files of quarantines} AS q
JOIN datasets AS d ON parse_path(q.filename)[-2] = d.last_manifest
WHERE {here}
UNION ALL
SELECT
    d.dataset, i.uri, i.image_id, r.reason, r.detail, e.encoder, e.encoder_key,
    e.control, r.first_seen
FROM refused AS r
JOIN {files of manifests} AS i USING (image_id)
JOIN datasets AS d ON parse_path(i.filename)[-2] = d.last_manifest
JOIN encoders AS e USING (encoder_key)
WHERE {here};
COMMENT ON VIEW quarantine IS
'One row per input that the latest run refused, even if it was refused as a whole: by
ingest or (with encoder) when it was decoded; and since when (UTC) for that reason.';

CREATE VIEW duplicates AS
SELECT d.dataset, f.* EXCLUDE (filename)
FROM {files of duplicates} AS f
JOIN datasets AS d ON parse_path(f.filename)[-2] = d.manifest
WHERE {here};
COMMENT ON VIEW duplicates IS
'One row per file with the very bytes of another, kept_uri, which is in images.';

CREATE VIEW near_duplicates AS
SELECT d.dataset, n.* EXCLUDE (filename)
FROM {files of near duplicates} AS n
JOIN datasets AS d ON parse_path(n.filename)[-2] = d.manifest
WHERE {here};
COMMENT ON VIEW near_duplicates IS
'One row per pair of near duplicates in the latest run of each dataset.';

CREATE VIEW embeddings AS
SELECT e.encoder, p.encoder AS encoder_key, e.control, p.image_id, p.embedding
FROM {files of embeddings} AS p
JOIN encoders AS e ON e.encoder_key = p.encoder
ANTI JOIN doubled_embeddings AS d
    ON d.encoder_key = p.encoder AND d.file = parse_filename(p.filename)
    AND d.row = p.file_row_number
WHERE {here};
COMMENT ON VIEW embeddings IS
'One row per encoder and image: Shared by all datasets.';

CREATE VIEW metrics AS
SELECT
    r.run_id, r.dataset,
    CASE WHEN r.encoder_key IS NULL
        THEN coalesce(replace(r.encoder, n.label, n.encoder), r.encoder)
        ELSE r.encoder END AS encoder,
    m.head, m.split, m.metric, m.value, m.low, m.high, m.images, m.chosen,
    CASE WHEN r.role = 'best' AND NOT r.latest THEN 'candidate' ELSE r.role END AS role,
    r.control, m.family, m.encoder_key, m.evaluation
FROM {files of metrics} AS m
JOIN current_evaluations AS c USING (evaluation)
JOIN run_evaluations AS r ON r.run_id = c.run_id AND r.evaluation = m.evaluation
LEFT JOIN encoders AS n ON n.encoder_key = m.encoder_key
WHERE {here};
COMMENT ON VIEW metrics IS
'One row per dataset, encoder, chosen head, split and metric, as of the last run that had
that encoder and kind of head; low and high bound a 95 % interval. The split folds is of
training and validation images, each scored by a head that did not learn from it; where
validation chooses, there is validation in its place. train is of images that the head
learned from: no measure of what it does on others. Of configurations that were not chosen
the view searches tells.';

CREATE VIEW metrics_history AS
SELECT
    r.run_id, r.dataset,
    CASE WHEN r.encoder_key IS NULL
        THEN coalesce(replace(r.encoder, n.label, n.encoder), r.encoder)
        ELSE r.encoder END AS encoder,
    m.head, m.split, m.metric, m.value, m.low, m.high, m.images, m.chosen,
    r.role, r.control, m.family, m.encoder_key, m.evaluation
FROM {files of all metrics} AS m
JOIN run_evaluations AS r USING (evaluation)
LEFT JOIN encoders AS n ON n.encoder_key = m.encoder_key
WHERE {here};
COMMENT ON VIEW metrics_history IS
'One row per run, encoder, chosen head, split and metric: as metrics, of all runs.';

CREATE VIEW predictions AS
SELECT
    r.dataset, r.run_id, r.encoder, r.encoder_key, r.control, r.head,
    CASE WHEN r.role = 'best' AND NOT r.latest THEN 'candidate' ELSE r.role END AS role,
    p.image_id, p.split, p.label, p.predicted, p.label = p.predicted AS correct,
    p.confidence, p.accepted, p.set_size, p.in_set, p.probabilities, p.evaluation
FROM {files of predictions} AS p
JOIN current_evaluations AS c USING (evaluation)
JOIN run_evaluations AS r ON r.run_id = c.run_id AND r.evaluation = p.evaluation
WHERE {here};
COMMENT ON VIEW predictions IS
'One row per dataset, encoder, chosen head and image, as of the last run that had that
encoder and kind of head: of test, and of folds or validation, each by a head that did not
learn from it.';

CREATE VIEW predictions_history AS
SELECT
    r.dataset, r.run_id, r.encoder, r.encoder_key, r.control, r.head, r.role,
    p.image_id, p.split, p.label, p.predicted, p.label = p.predicted AS correct,
    p.confidence, p.accepted, p.set_size, p.in_set, p.probabilities, p.evaluation
FROM {files of all predictions} AS p
JOIN run_evaluations AS r USING (evaluation)
WHERE {here};
COMMENT ON VIEW predictions_history IS
'One row per run, encoder, chosen head and image: as predictions, of all runs.';

CREATE VIEW classes AS
SELECT r.dataset, c.evaluation, c.position, c.label
FROM (
    SELECT
        parse_path(filename)[-2] AS evaluation,
        unnest(range(1, len(labels) + 1)) AS position, unnest(labels) AS label
    FROM (
        SELECT filename, (content::JSON->'$.classes')::VARCHAR[] AS labels
        FROM {files of choices}
        WHERE {here}
    )
) AS c
JOIN (SELECT DISTINCT e.dataset, e.evaluation FROM run_evaluations AS e) AS r
    USING (evaluation);
COMMENT ON VIEW classes IS
'One row per dataset, evaluation and class: probabilities[position] of predictions is that
of label.';

CREATE VIEW changes AS
WITH steps AS (
    SELECT run_id, dataset, manifest, previous
    FROM (
        SELECT
            run_id, dataset, document->>'$.manifest' AS manifest,
            lag(document->>'$.manifest') OVER (PARTITION BY dataset ORDER BY run_id)
                AS previous
        FROM records
    )
    WHERE manifest <> previous AND list_contains({files of names of all manifests}, manifest)
    AND list_contains({files of names of all manifests}, previous)
), pairs AS (
    SELECT
        run_id, dataset, image_id, coalesce(any_value(uri) FILTER (WHERE now),
            any_value(uri)) AS uri,
        any_value(split) FILTER (WHERE NOT now) AS old_split,
        any_value(split) FILTER (WHERE now) AS new_split,
        any_value(label) FILTER (WHERE NOT now) AS old_label,
        any_value(label) FILTER (WHERE now) AS new_label
    FROM (
        SELECT s.run_id, s.dataset, m.image_id, m.uri, m.split, m.label, true AS now
        FROM {files of all manifests} AS m
        JOIN steps AS s ON s.manifest = parse_path(m.filename)[-2]
        UNION ALL
        SELECT s.run_id, s.dataset, m.image_id, m.uri, m.split, m.label, false AS now
        FROM {files of all manifests} AS m
        JOIN steps AS s ON s.previous = parse_path(m.filename)[-2]
    )
    GROUP BY run_id, dataset, image_id
    HAVING old_split IS DISTINCT FROM new_split OR old_label IS DISTINCT FROM new_label
)
SELECT
    run_id, dataset, image_id, uri, coalesce(new_label, old_label) AS label,
    CASE WHEN old_split IS NULL THEN 'entered' WHEN new_split IS NULL THEN 'left'
        ELSE 'moved' END AS change,
    old_split AS before, new_split AS after
FROM pairs WHERE old_split IS DISTINCT FROM new_split
UNION ALL
SELECT
    run_id, dataset, image_id, uri, new_label AS label, 'relabelled' AS change,
    old_label AS before, new_label AS after
FROM pairs WHERE old_label <> new_label;
COMMENT ON VIEW changes IS
'One row per run and image that entered, left, moved to another split or got another label
since the run before; none where the manifest of either is gone.';

CREATE VIEW centroids AS
SELECT
    dataset, encoder, encoder_key, control, label, any_value(images) AS images,
    list(value::FLOAT ORDER BY position) AS centroid
FROM (
    SELECT
        dataset, encoder, encoder_key, control, label, position,
        avg(value) AS value, count(*) AS images
    FROM (
        SELECT
            i.dataset, e.encoder, e.encoder_key, e.control, i.label,
            unnest(e.embedding) AS value,
            unnest(range(1, len(e.embedding) + 1)) AS position
        FROM images AS i
        JOIN embeddings AS e USING (image_id)
        WHERE i.label IS NOT NULL
    )
    GROUP BY ALL
)
GROUP BY ALL;
COMMENT ON VIEW centroids IS
'One row per dataset, encoder and class: the mean embedding of its images, of all splits.';

CREATE VIEW class_scores AS
SELECT
    r.dataset, r.run_id, r.encoder, r.encoder_key, r.control, r.head, r.role, s.split,
    s.label, s.metric, s.value, s.low, s.high, s.images, s.evaluation
FROM {files of class scores} AS s
JOIN current_evaluations AS c USING (evaluation)
JOIN run_evaluations AS r ON r.run_id = c.run_id AND r.evaluation = s.evaluation
WHERE {here};
COMMENT ON VIEW class_scores IS
'One row per dataset, encoder, chosen head, split, class and metric, of the runs that
predictions has: precision, recall, f1, and roc_auc and average_precision of the class
against all others. What is not defined has no row.';

CREATE VIEW batches AS
SELECT
    document->>'$.run_id' AS batch_id, document->>'$.dataset' AS dataset,
    document->>'$.name' AS name, (document->>'$.version')::BIGINT AS version,
    document->>'$.model' AS model,
    (document->>'$.started')::TIMESTAMP AS started,
    (document->>'$.finished')::TIMESTAMP AS finished,
    (document->>'$.images')::BIGINT AS images,
    (document->>'$.new')::BIGINT AS new_images,
    (document->>'$.quarantined')::BIGINT AS quarantined,
    (document->>'$.duplicates')::BIGINT AS duplicates,
    document->>'$.manifest' AS manifest
FROM (SELECT content::JSON AS document FROM {files of batch records} WHERE {here});
COMMENT ON VIEW batches IS
'One row per finished batch of predictions, by tl predict of a dataset or folder or by the
flow batch-predict.';

CREATE VIEW drift AS
SELECT
    document->>'$.run_id' AS batch_id, document->>'$.dataset' AS dataset,
    document->>'$.name' AS name, (document->>'$.version')::BIGINT AS version,
    d->>'$.statistic' AS statistic, (d->>'$.value')::DOUBLE AS value,
    (d->>'$.reference')::DOUBLE AS reference, (d->>'$.p')::DOUBLE AS p,
    (d->>'$.limit')::DOUBLE AS threshold, (d->>'$.tripped')::BOOLEAN AS tripped
FROM (
    SELECT document, unnest((document->'$.drift')::JSON[]) AS d
    FROM (SELECT content::JSON AS document FROM {files of batch records} WHERE {here})
);
COMMENT ON VIEW drift IS
'One row per batch of predictions and statistic by which its new images are compared with
the test images of the model.';

CREATE VIEW batch_predictions AS
SELECT
    dataset, image_id, uri, label, confidence, accepted, labels, top, nearest_id,
    nearest_similarity, novelty, name, version, make_timestamp(epoch_us(predicted_at))
        AS predicted_at, model
FROM {files of batch predictions}
WHERE {here};
COMMENT ON VIEW batch_predictions IS
'One row per dataset, image and model that predicted it in a batch, which it does once.';

CREATE VIEW comparisons AS
SELECT
    r.run_id, r.dataset, e.encoder, e.encoder_key, e.control, e.head, e.role,
    c->>'$.evaluation' AS evaluation, c->>'$.against' AS against,
    c->>'$.metric' AS metric,
    (c->>'$.difference.value')::DOUBLE AS value,
    (c->>'$.difference.low')::DOUBLE AS low,
    (c->>'$.difference.high')::DOUBLE AS high,
    (c->>'$.images')::BIGINT AS images, (c->>'$.won')::BIGINT AS won,
    (c->>'$.lost')::BIGINT AS lost, (c->>'$.p')::DOUBLE AS p,
    (c->>'$.p_holm')::DOUBLE AS p_holm,
    CASE WHEN (c->>'$.p_holm')::DOUBLE >= {alpha} THEN 'tie' ELSE 'worse' END AS verdict,
    k.milliseconds, k.bytes
FROM (
    SELECT DISTINCT run_id, dataset, unnest(document->'$.comparisons[*]') AS c
    FROM records
) AS r
JOIN run_evaluations AS e
    ON e.run_id = r.run_id AND e.evaluation = (c->>'$.evaluation')
LEFT JOIN (
    SELECT DISTINCT
        run_id, e->>'$.evaluation' AS evaluation,
        (e->>'$.milliseconds')::DOUBLE AS milliseconds, (e->>'$.bytes')::BIGINT AS bytes
    FROM (SELECT run_id, unnest(document->'$.results[*]') AS e FROM records)
) AS k ON k.run_id = r.run_id AND k.evaluation = e.evaluation;
COMMENT ON VIEW comparisons IS
'One row per run and candidate but the one that held-out images rank highest, against:
what its score is more or less than that one''s on the same held-out images.';
