package postgres

// migrations[n] takes the tables from version n to n+1 (table migration). What has been released
// here is never changed, only added to. Statements are those of PostgreSQL 13.
//
// Times are NULL for none. IDs are 32 bytes. Text is as escape writes it; empty text that is not
// searched for is NULL. Issuers have a number, so that the index of serial numbers stays small;
// a record without an issuer has number 0.
//
// The CSR, the template and the certificate are nine tenths of a record. They are kept out of
// line (EXTERNAL, without an attempt to compress DER) so that a row is some 400 bytes, an update
// writes no more than that and the certificate, and an index lookup reads one small page.
//
// The table is not partitioned. An ID, and a serial number of an issuer, must be unique among all
// records, and PostgreSQL has no unique index over several partitions but one that begins with the
// partition key: expiry, which neither lookup knows. Keeping only the large columns in partitions
// by expiry makes each lookup prepare all partitions: with 40 of them it took three times as long,
// with 160 eight times. B-trees grow by one level from ten thousand records to ten million.
// Old records are found by expiry (record_not_after) and deleted in small batches, see Prune; the
// room is used again, so that a table of which as much is deleted as is added stays as it is.
var migrations = [...][]string{{
	`CREATE TABLE issuer (
		number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		name bytea NOT NULL UNIQUE -- DER
	)`,

	`CREATE TABLE record (
		id bytea PRIMARY KEY,
		stored bigint GENERATED ALWAYS AS IDENTITY, -- in this order
		trans bytea NOT NULL, -- the transaction
		version bigint NOT NULL,
		origin bigint NOT NULL, -- drawn at random by who wrote version 1
		latest bigint NOT NULL, -- drawn at random by who wrote this version
		state smallint NOT NULL, -- 1 pending, 2 signing, 3 issued, 4 denied, 5 revoked
		profile text NOT NULL,
		created timestamptz,
		changed timestamptz,
		issuer integer NOT NULL,
		serial bytea, -- big-endian; one that is not positive has 00 in front
		not_after timestamptz,
		revoked timestamptz,
		revocation_reason bigint NOT NULL, -- RFC 5280, 5.3.1
		unrevoked timestamptz,
		unconfirmed boolean NOT NULL,
		generation bigint NOT NULL,
		renews bytea,
		fail_info bigint NOT NULL,
		reason text,
		via text,
		remote_addr text,
		transaction_id text,
		decided_by text,
		remark text,
		subject text, -- for people; what counts is in the certificate
		san text, -- the same
		renewed_by bytea, -- IDs, 32 bytes each
		csr bytea,
		template bytea,
		certificate bytea
	) WITH (toast_tuple_target = 512, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)`,

	`ALTER TABLE record ALTER COLUMN csr SET STORAGE EXTERNAL`,
	`ALTER TABLE record ALTER COLUMN template SET STORAGE EXTERNAL`,
	`ALTER TABLE record ALTER COLUMN certificate SET STORAGE EXTERNAL`,

	`CREATE UNIQUE INDEX record_serial ON record (serial, issuer) WHERE serial IS NOT NULL`,
	`CREATE INDEX record_trans ON record (trans, created DESC NULLS LAST, stored DESC)`,
	// Most are issued; the index has the few others.
	`CREATE INDEX record_state ON record (state, id) WHERE state <> 3`,
	// For CRLs: what is revoked, or is so no more.
	`CREATE INDEX record_revoked ON record (issuer, serial) INCLUDE (not_after, revoked, revocation_reason)
		WHERE state = 5 AND serial IS NOT NULL`,
	`CREATE INDEX record_revoked_since ON record (issuer, changed) WHERE state = 5 AND serial IS NOT NULL`,
	`CREATE INDEX record_unrevoked_since ON record (issuer, unrevoked) WHERE state = 3 AND unrevoked IS NOT NULL AND serial IS NOT NULL`,
	// For Prune. Most records have no place in them but the first, where they come in order.
	`CREATE INDEX record_not_after ON record (not_after) WHERE not_after IS NOT NULL`,
	`CREATE INDEX record_denied ON record (changed) WHERE state = 4`,
	`CREATE INDEX record_pending ON record (changed) WHERE state = 1`,
	`CREATE INDEX record_generation ON record (trans, generation) WHERE generation > 0`,
	`CREATE INDEX record_renewing ON record (renews) WHERE renews IS NOT NULL AND (state < 3 OR unconfirmed)`,

	`CREATE VIEW certificates AS SELECT
		encode(r.id, 'hex') AS id,
		CASE r.state WHEN 1 THEN 'pending' WHEN 2 THEN 'signing' WHEN 3 THEN 'issued' WHEN 4 THEN 'denied' WHEN 5 THEN 'revoked' END AS state,
		r.profile,
		r.subject,
		r.san,
		encode(r.serial, 'hex') AS serial,
		r.created,
		r.not_after,
		r.revoked,
		CASE r.state WHEN 5 THEN r.revocation_reason END AS revocation_reason, -- RFC 5280, 5.3.1
		r.decided_by,
		r.remark,
		r.transaction_id,
		r.remote_addr,
		r.csr,
		r.certificate
	FROM record AS r`,

	`CREATE TABLE challenge (
		hash bytea PRIMARY KEY,
		profile text NOT NULL,
		subject text,
		san text,
		created timestamptz,
		expires timestamptz NOT NULL,
		spent timestamptz,
		spent_by bytea,
		forget timestamptz NOT NULL -- when the row may be deleted
	)`,

	`CREATE INDEX challenge_unspent ON challenge (profile, expires) WHERE spent_by IS NULL`,
	`CREATE INDEX challenge_forget ON challenge (forget)`,
}, {
	// For Scan. Only its end need be in memory.
	`CREATE INDEX record_stored ON record (stored)`,
}}
