-- Customers, @customers of them, and ten times as many orders: insertion, an index, joins, groups and a recursive query.
CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city INTEGER);
CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer INTEGER, amount INTEGER);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < @customers)
  INSERT INTO customer SELECT i, 'customer ' || (i * 7919 % 1000), i * 31 % 17 FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10 * @customers)
  INSERT INTO purchase SELECT i, 1 + i * 104729 % @customers, i * 7907 % 9973 FROM n;
COMMIT;
CREATE INDEX by_customer ON purchase (customer, amount);
SELECT city, count(*), sum(amount), max(name) FROM customer JOIN purchase ON customer.id = purchase.customer
  GROUP BY city ORDER BY 3 DESC;
SELECT name, (SELECT max(amount) FROM purchase WHERE customer = customer.id) AS most FROM customer
  WHERE name LIKE '%12%' ORDER BY most, name LIMIT 10;
