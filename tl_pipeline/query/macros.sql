-- What analysts ask in one line. {embeddings of encoder} is replaced by a query for each
-- encoder, as the type FLOAT[width] must be known before it runs. In what stands behind
-- "Example:", which help() gives, {dataset}, {encoder}, {other}, {evaluation} and {image}
-- are replaced by names of the store.
-- A parameter is meant where a name stands alone, a column where its table stands before.
-- No macro has a WITH clause: DuckDB 1.4 does not find those that newer versions stored.
-- Those named _rows compare embeddings, in any DuckDB; in a connection of ours functions
-- that map unit vectors take their place (neighbours.py). help() leaves them out.
-- None chooses between arrays by CASE or coalesce, which DuckDB before 2.0 cannot.

CREATE MACRO dataset_named(name) AS coalesce(
    (SELECT d.dataset FROM datasets AS d WHERE d.dataset = name),
    error('no dataset ' || name || '; FROM datasets lists them')
);
COMMENT ON MACRO dataset_named IS 'The name of a dataset; an error if there is none.
Example: SELECT dataset_named(''{dataset}'') AS dataset';

CREATE MACRO embeddings_of(encoder) AS TABLE
FROM query({embeddings of encoder});
COMMENT ON MACRO TABLE embeddings_of IS
'image_id and embedding of one encoder, as FLOAT[width]: for array_cosine_similarity and
the like. encoder is its name or key in encoders, or its backbone if no other but untrained
controls has that.
Example: SELECT image_id, array_cosine_similarity(embedding, (SELECT embedding FROM embeddings_of(''{encoder}'') WHERE image_id = ''{image}'')) AS similarity FROM embeddings_of(''{encoder}'') ORDER BY similarity DESC LIMIT 3';

CREATE MACRO labelled_embeddings(dataset, encoder) AS TABLE
SELECT i.image_id, i.uri, i.label, i.split, e.embedding
FROM embeddings_of(encoder) AS e
JOIN images AS i ON i.image_id = e.image_id
WHERE i.dataset = dataset_named(dataset);
COMMENT ON MACRO TABLE labelled_embeddings IS
'The images of a dataset (image_id, uri, label, split) with their embedding, FLOAT[width].
Example: SELECT uri, label, embedding[1:3] AS first FROM labelled_embeddings(''{dataset}'', ''{encoder}'') LIMIT 3';

CREATE MACRO centroids_of(dataset, encoder) AS TABLE
SELECT v.label, any_value(v.images) AS images,
    list(v.value::FLOAT ORDER BY v.position) AS centroid
FROM (
    SELECT u.label, u.position, avg(u.value) AS value, count(*) AS images
    FROM (
        SELECT e.label, unnest(e.embedding::FLOAT[]) AS value,
            unnest(range(1, len(e.embedding::FLOAT[]) + 1)) AS position
        FROM labelled_embeddings(dataset, encoder) AS e
    ) AS u
    GROUP BY u.label, u.position
) AS v
GROUP BY v.label;
COMMENT ON MACRO TABLE centroids_of IS
'The mean embedding of each class, of the images of all splits.
Example: SELECT label, images, centroid[1:3] AS first FROM centroids_of(''{dataset}'', ''{encoder}'')';

CREATE MACRO nearest_rows(vector, k, encoder) AS TABLE
SELECT s.image_id, s.similarity
FROM (
    SELECT e.image_id,
        list_cosine_similarity(e.embedding::FLOAT[], vector::FLOAT[]) AS similarity
    FROM embeddings_of(encoder) AS e
) AS s
SEMI JOIN images AS m ON m.image_id = s.image_id
WHERE NOT isnan(s.similarity)
ORDER BY s.similarity DESC, s.image_id
LIMIT k;
COMMENT ON MACRO TABLE nearest_rows IS 'What nearest_to finds.';

CREATE MACRO nearest_to(vector, k, encoder) AS TABLE
SELECT i.dataset, n.image_id, i.uri, i.label, i.split, n.similarity
FROM nearest_rows(vector, k, encoder) AS n
JOIN images AS i ON i.image_id = n.image_id
ORDER BY n.similarity DESC, n.image_id, i.dataset;
COMMENT ON MACRO TABLE nearest_to IS
'The k images whose embeddings are most like vector (cosine, -1 to 1); one row for each
dataset that has the image.
Example: FROM nearest_to((SELECT embedding FROM embeddings_of(''{encoder}'') WHERE image_id = ''{image}''), 3, ''{encoder}'')';

CREATE MACRO neighbour_rows(image_id, k, encoder) AS TABLE
SELECT s.image_id, s.similarity
FROM (
    SELECT e.image_id, array_cosine_similarity(e.embedding, (
        SELECT v.embedding FROM embeddings_of(encoder) AS v
        JOIN (SELECT image_id AS wanted) AS a ON v.image_id = a.wanted
    )) AS similarity
    FROM embeddings_of(encoder) AS e
) AS s
SEMI JOIN images AS m ON m.image_id = s.image_id
WHERE s.image_id <> (SELECT image_id) AND coalesce(
    NOT isnan(s.similarity),
    error('no embedding of image ' || (SELECT image_id) || ' by this encoder')
)
ORDER BY s.similarity DESC, s.image_id
LIMIT k;
COMMENT ON MACRO TABLE neighbour_rows IS 'What neighbours finds.';

CREATE MACRO neighbours(image_id, k, encoder) AS TABLE
SELECT i.dataset, n.image_id, i.uri, i.label, i.split, n.similarity
FROM neighbour_rows((SELECT image_id), k, encoder) AS n
JOIN images AS i ON i.image_id = n.image_id
ORDER BY n.similarity DESC, n.image_id, i.dataset;
COMMENT ON MACRO TABLE neighbours IS
'The k images that are most like a stored one (cosine, -1 to 1), without itself; one row
for each dataset that has the image.
Example: FROM neighbours(''{image}'', 3, ''{encoder}'')';

CREATE MACRO knn_rows(dataset, k, encoder) AS TABLE
SELECT n.image_id, n.near.image_id AS near_id, n.near.similarity AS similarity
FROM (
    SELECT p.image_id, unnest(max(p.near, k)) AS near
    FROM (
        SELECT q.image_id, {
            'similarity': array_cosine_similarity(q.embedding, r.embedding),
            'image_id': r.image_id
        } AS near
        FROM labelled_embeddings(dataset, encoder) AS q
        JOIN labelled_embeddings(dataset, encoder) AS r
            ON q.split = 'test' AND r.split <> 'test'
    ) AS p
    WHERE NOT isnan(p.near.similarity)
    GROUP BY p.image_id
) AS n;
COMMENT ON MACRO TABLE knn_rows IS
'The k images of train and validation that are nearest to each of test.';

CREATE MACRO classify_knn(dataset, k, encoder) AS TABLE
SELECT i.image_id, i.uri, i.label, v.vote AS predicted, v.votes,
    i.label = v.vote AS correct
FROM (
    SELECT n.image_id, r.label AS vote, count(*) AS votes
    FROM knn_rows(dataset, k, encoder) AS n
    JOIN images AS r ON r.image_id = n.near_id AND r.dataset = dataset_named(dataset)
    GROUP BY n.image_id, r.label
    QUALIFY row_number() OVER (
        PARTITION BY n.image_id
        ORDER BY count(*) DESC, sum(n.similarity) DESC, r.label
    ) = 1
) AS v
JOIN images AS i ON i.image_id = v.image_id AND i.dataset = dataset_named(dataset)
ORDER BY i.image_id;
COMMENT ON MACRO TABLE classify_knn IS
'Each image of test, classified by the majority of its k nearest images of train and
validation (cosine; of equal majorities the more similar); votes of k agree.
Example: SELECT avg(correct::INT) AS accuracy FROM classify_knn(''{dataset}'', 5, ''{encoder}'')';

CREATE MACRO outliers(dataset, k, encoder) AS TABLE
SELECT e.image_id, e.uri, e.label, e.split,
    list_cosine_similarity(e.embedding::FLOAT[], c.centroid) AS similarity
FROM labelled_embeddings(dataset, encoder) AS e
JOIN centroids_of(dataset, encoder) AS c ON c.label = e.label
ORDER BY similarity, e.image_id
LIMIT k;
COMMENT ON MACRO TABLE outliers IS
'The k images that are least like the mean of their class (cosine, -1 to 1).
Example: FROM outliers(''{dataset}'', 3, ''{encoder}'')';

CREATE MACRO pair_rows(dataset, similarity, encoder) AS TABLE
SELECT p.image_id, p.near_id, p.cosine
FROM (
    SELECT a.image_id, b.image_id AS near_id,
        array_cosine_similarity(a.embedding, b.embedding) AS cosine
    FROM labelled_embeddings(dataset, encoder) AS a
    JOIN labelled_embeddings(dataset, encoder) AS b ON a.image_id < b.image_id
) AS p
WHERE p.cosine >= similarity AND NOT isnan(p.cosine);
COMMENT ON MACRO TABLE pair_rows IS 'What duplicates finds.';

CREATE MACRO duplicates(dataset, similarity, encoder) AS TABLE
SELECT a.image_id, a.uri, a.label, a.split, b.image_id AS near_id, b.uri AS near_uri,
    b.label AS near_label, b.split AS near_split, p.cosine
FROM pair_rows(dataset, similarity, encoder) AS p
JOIN images AS a ON a.image_id = p.image_id AND a.dataset = dataset_named(dataset)
JOIN images AS b ON b.image_id = p.near_id AND b.dataset = a.dataset
ORDER BY p.cosine DESC, a.image_id, b.image_id;
COMMENT ON MACRO TABLE duplicates IS
'Pairs of images of a dataset whose cosine is at least similarity; it compares all with
all. The views duplicates and near_duplicates list what runs found.
Example: FROM duplicates(''{dataset}'', 0.99, ''{encoder}'') LIMIT 3';

CREATE MACRO class_similarity(dataset, encoder) AS TABLE
SELECT a.label, b.label AS other_label,
    list_cosine_similarity(a.centroid, b.centroid) AS similarity
FROM centroids_of(dataset, encoder) AS a
JOIN centroids_of(dataset, encoder) AS b ON a.label < b.label
ORDER BY similarity DESC, a.label, b.label;
COMMENT ON MACRO TABLE class_similarity IS
'How alike two classes are: the cosine of their means, -1 to 1, the most alike first.
Example: FROM class_similarity(''{dataset}'', ''{encoder}'') LIMIT 3';

CREATE MACRO drift(dataset_a, dataset_b, encoder) AS TABLE
SELECT coalesce(a.label, b.label) AS label,
    coalesce(a.images, 0) AS images_a, coalesce(b.images, 0) AS images_b,
    images_a / sum(images_a) OVER () AS share_a,
    images_b / sum(images_b) OVER () AS share_b,
    1 - list_cosine_similarity(a.centroid, b.centroid) AS distance
FROM centroids_of(dataset_a, encoder) AS a
FULL JOIN centroids_of(dataset_b, encoder) AS b ON a.label = b.label
ORDER BY distance DESC NULLS FIRST, label;
COMMENT ON MACRO TABLE drift IS
'For each class: its images and its share in two datasets, and the cosine distance
between its two means (0 to 2; null where one has none), the farthest first.
Example: FROM drift(''{dataset}'', ''{dataset}'', ''{encoder}'') LIMIT 3';

CREATE MACRO confusion(dataset) AS TABLE
SELECT p.label, p.predicted, count(*) AS images,
    count(*) / sum(count(*)) OVER (PARTITION BY p.label) AS share
FROM predictions AS p
WHERE p.dataset = dataset_named(dataset) AND p.role = 'best' AND p.split = 'test'
GROUP BY p.label, p.predicted
ORDER BY p.label, images DESC, p.predicted;
COMMENT ON MACRO TABLE confusion IS
'How the best head of the latest run classified test: the images of each label and
prediction, and their share of the label (0 to 1).
Example: FROM confusion(''{dataset}'') WHERE label <> predicted ORDER BY images DESC LIMIT 3';

CREATE MACRO misclassified(dataset) AS TABLE
SELECT p.image_id, i.uri, p.label, p.predicted, p.confidence
FROM predictions AS p
LEFT JOIN images AS i ON i.dataset = p.dataset AND i.image_id = p.image_id
WHERE p.dataset = dataset_named(dataset) AND p.role = 'best' AND p.split = 'test'
AND NOT p.correct
ORDER BY p.confidence DESC, p.image_id;
COMMENT ON MACRO TABLE misclassified IS
'The images of test that the best head of the latest run got wrong, the most confident
first.
Example: FROM misclassified(''{dataset}'') LIMIT 3';

CREATE MACRO label_issues(dataset) AS TABLE
SELECT p.image_id, i.uri, p.label, p.predicted AS suggested,
    p.probabilities[c.position] AS probability, p.confidence AS suggested_probability
FROM predictions AS p
JOIN classes AS c ON c.evaluation = p.evaluation AND c.label = p.label
LEFT JOIN images AS i ON i.dataset = p.dataset AND i.image_id = p.image_id
WHERE p.dataset = dataset_named(dataset) AND p.role = 'best'
AND p.split IN ('folds', 'validation') AND NOT p.correct
ORDER BY probability, p.image_id;
COMMENT ON MACRO TABLE label_issues IS
'Labels that may be wrong, the least probable first (self-confidence: Northcutt, Jiang and
Chuang 2021, Confident Learning): images that heads did not learn from when they scored
them, and another label is suggested for. A corrected file goes into relabel in the catalogue.
Example: FROM label_issues(''{dataset}'') LIMIT 3';

CREATE MACRO disagreements(a, b) AS TABLE
SELECT f.dataset, f.image_id, i.uri, f.label, f.head AS head_a,
    f.predicted AS predicted_a, f.confidence AS confidence_a, s.head AS head_b,
    s.predicted AS predicted_b, s.confidence AS confidence_b
FROM predictions AS f
JOIN predictions AS s ON s.dataset = f.dataset AND s.image_id = f.image_id
    AND s.split = f.split AND s.predicted <> f.predicted
LEFT JOIN images AS i ON i.dataset = f.dataset AND i.image_id = f.image_id
WHERE f.split = 'test' AND a IN (f.evaluation, f.encoder)
AND b IN (s.evaluation, s.encoder)
ORDER BY f.dataset, f.image_id, head_a, head_b;
COMMENT ON MACRO TABLE disagreements IS
'The images of test for which two heads predict different labels. a and b are evaluations
or, for all their heads, encoders, as in predictions.
Example: FROM disagreements(''{evaluation}'', ''{other}'') LIMIT 3';

CREATE MACRO coverage(dataset) AS TABLE
SELECT n.encoder, n.encoder_key, n.control, count(*) AS images,
    count(e.image_id) AS embedded, count(r.image_id) AS refused,
    count(*) - count(e.image_id) - count(r.image_id) AS missing
FROM images AS i
CROSS JOIN encoders AS n
LEFT JOIN (SELECT g.encoder_key, g.image_id FROM embeddings AS g) AS e
    ON e.encoder_key = n.encoder_key AND e.image_id = i.image_id
LEFT JOIN refused AS r
    ON r.encoder_key = n.encoder_key AND r.image_id = i.image_id
WHERE i.dataset = dataset_named(dataset) AND n.width IS NOT NULL
GROUP BY n.encoder, n.encoder_key, n.control
ORDER BY n.encoder;
COMMENT ON MACRO TABLE coverage IS
'For each encoder: how many images of the dataset are embedded, were refused when they
were decoded, or are missing.
Example: FROM coverage(''{dataset}'')';

CREATE MACRO what_changed(since) AS TABLE
SELECT r.finished, c.dataset, c.change, c.before, c.after, count(*) AS images
FROM changes AS c
JOIN runs AS r ON r.run_id = c.run_id
WHERE r.finished >= since::TIMESTAMP
GROUP BY r.finished, c.dataset, c.change, c.before, c.after
ORDER BY r.finished, c.dataset, c.change, c.before, c.after;
COMMENT ON MACRO TABLE what_changed IS
'What runs that ended since then (UTC) found changed: how many images entered, left, moved
or were relabelled, from and to which split or label.
Example: FROM what_changed(''2026-01-01'')';

CREATE MACRO help() AS TABLE
SELECT h.name, h.kind, trim(regexp_replace(h.comment, '\s+', ' ', 'g')) AS comment,
    h.columns, h.example
FROM (
    SELECT v.name, 'view' AS kind, v.comment, list({
        'name': c.column_name, 'type': c.data_type, 'comment': c.comment
    } ORDER BY c.column_index) AS columns, 'FROM ' || v.name || ' LIMIT 3' AS example
    FROM (
        SELECT t.table_name AS name, t.comment, t.database_name
        FROM duckdb_tables() AS t
        WHERE t.table_name <> 'built' AND NOT t.internal
        UNION ALL
        SELECT w.view_name, w.comment, w.database_name
        FROM duckdb_views() AS w
        WHERE NOT w.internal
    ) AS v
    JOIN duckdb_columns() AS c
        ON c.table_name = v.name AND c.database_name = v.database_name
    WHERE v.database_name = current_database()
    GROUP BY v.name, v.comment
    UNION ALL
    SELECT f.function_name || '(' || array_to_string(f.parameters, ', ') || ')',
        'macro', split_part(f.comment, 'Example: ', 1), NULL,
        split_part(f.comment, 'Example: ', 2)
    FROM duckdb_functions() AS f
    WHERE f.function_type IN ('macro', 'table_macro') AND NOT f.internal
        AND f.database_name = current_database() AND f.function_name <> 'help'
        AND NOT suffix(f.function_name, '_rows')
) AS h
ORDER BY h.kind DESC, h.name;
COMMENT ON MACRO TABLE help IS
'What there is to ask: views with their columns, then macros, each with an example.';
