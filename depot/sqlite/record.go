package sqlite

import (
	"context"
	"database/sql/driver"
	"math/big"

	"github.com/scepkit/scepkit/depot/internal/names"
	"github.com/scepkit/scepkit/scep"
)

const (
	insertRecord = `INSERT INTO record (id, trans, version, state, profile, created, changed,
		issuer, serial, not_after, revoked, revocation_reason, unconfirmed, generation, renews,
		fail_info, reason, via, remote_addr, transaction_id, subject, san, csr, template, renewed_by,
		unrevoked, decided_by, remark)
		VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

	// updateRecord is for the usual case, that no indexed column but the state changes:
	// SQLite writes index entries anew for every column that is set, changed or not. The
	// names do not change either, as the template, which has the serial number, is the same.
	updateRecord = `UPDATE record SET version = version + 1, state = ?1, profile = ?2, changed = ?3,
		revoked = ?5, revocation_reason = ?6, unconfirmed = ?7,
		fail_info = ?10, reason = ?11, via = ?12, remote_addr = ?13,
		transaction_id = ?14, csr = ?15, template = ?16, renewed_by = ?23,
		unrevoked = ?24, decided_by = ?25, remark = ?26
		WHERE id = ?17 AND version = ?18 AND trans = ?19 AND created IS ?20 AND issuer IS ?21 AND serial IS ?22
		AND not_after IS ?4 AND generation = ?8 AND renews IS ?9`

	replaceRecord = `UPDATE record SET version = version + 1, state = ?1, profile = ?2, changed = ?3,
		not_after = ?4, revoked = ?5, revocation_reason = ?6, unconfirmed = ?7, generation = ?8,
		renews = ?9, fail_info = ?10, reason = ?11, via = ?12, remote_addr = ?13,
		transaction_id = ?14, csr = ?15, template = ?16, renewed_by = ?23,
		unrevoked = ?24, decided_by = ?25, remark = ?26,
		trans = ?19, created = ?20, issuer = ?21, serial = ?22, subject = ?27, san = ?28
		WHERE id = ?17 AND version = ?18`

	putCertificate = `INSERT INTO certificate (record, der) SELECT stored, ?2 FROM record WHERE id = ?1
		ON CONFLICT (record) DO UPDATE SET der = excluded.der WHERE der <> excluded.der`

	dropCertificate = `DELETE FROM certificate WHERE record = (SELECT stored FROM record WHERE id = ?)`

	hasRecord = `SELECT 1 FROM record WHERE id = ?`

	ofRecord = `id, trans, version, state, profile, created, changed,
		(SELECT name FROM issuer WHERE number = record.issuer), serial, not_after, revoked,
		revocation_reason, unconfirmed, generation, renews, fail_info, reason, via, remote_addr,
		transaction_id, csr, template, renewed_by, (SELECT der FROM certificate WHERE certificate.record = record.stored),
		unrevoked, decided_by, remark`
	recordColumns = 27
	selectRecord  = `SELECT ` + ofRecord + ` FROM record`

	getRecord    = selectRecord + ` WHERE id = ?`
	latestRecord = selectRecord + ` WHERE trans = ? ORDER BY created DESC, stored DESC LIMIT 1`
	serialRecord = selectRecord + ` WHERE serial = ? AND issuer = (SELECT number FROM issuer WHERE name = ?)`

	listRecords = selectRecord + ` WHERE id > ?1 AND (?2 IS NULL OR profile = ?2) ORDER BY id LIMIT ?3`
	listIssued  = selectRecord + ` WHERE state = 3 AND id > ?1 AND (?2 IS NULL OR profile = ?2) ORDER BY id LIMIT ?3`
	listState   = selectRecord + ` WHERE state <> 3 AND state = ?4 AND id > ?1 AND (?2 IS NULL OR profile = ?2) ORDER BY id LIMIT ?3`
)

// Create implements [scep.Depot].
func (db *DB) Create(ctx context.Context, rec *scep.Record) error {
	r, err := encode(ctx, rec)
	if err != nil {
		return err
	}
	subject, san := names.Of(r.Record)
	err = db.write(ctx, func(w *writer) (answer, err error) { return w.create(r, subject, san) })
	if err == nil {
		rec.Version = 1
	}
	return err
}

// create inserts a record.
func (w *writer) create(r *encoded, subject, san string) (answer, err error) {
	issuer, err := r.issuer(w)
	if err != nil {
		return nil, err
	}
	_, err = w.insertRecord.exec(r.id, r.trans, int64(r.State), r.Profile, micros(r.Created), micros(r.Changed),
		issuer, r.serial, micros(r.NotAfter), micros(r.Revoked), int64(r.RevocationReason), truth(r.Unconfirmed),
		int64(r.Generation), r.renews, int64(r.FailInfo), text(r.Reason), text(r.Via), text(r.RemoteAddr),
		text(r.TransactionID), text(subject), text(san), blob(r.CSR), blob(r.Template), allDigits(r.RenewedBy),
		micros(r.Unrevoked), text(r.DecidedBy), text(r.Remark))
	if err == nil && len(r.Certificate) > 0 {
		_, err = w.putCertificate.exec(r.id, r.Certificate)
	}
	return refused(err)
}

// Update implements [scep.Depot].
func (db *DB) Update(ctx context.Context, rec *scep.Record) error {
	r, err := encode(ctx, rec)
	if err != nil {
		return err
	}
	err = db.write(ctx, func(w *writer) (answer, err error) {
		issuer, err := r.issuer(w)
		if err != nil {
			return nil, err
		}
		args := [...]driver.Value{
			int64(r.State), r.Profile, micros(r.Changed),
			micros(r.NotAfter), micros(r.Revoked), int64(r.RevocationReason), truth(r.Unconfirmed), int64(r.Generation),
			r.renews, int64(r.FailInfo), text(r.Reason), text(r.Via), text(r.RemoteAddr),
			text(r.TransactionID), blob(r.CSR), blob(r.Template),
			r.id, r.Version, r.trans, micros(r.Created), issuer, r.serial,
			allDigits(r.RenewedBy), micros(r.Unrevoked), text(r.DecidedBy), text(r.Remark),
			nil, nil,
		}
		n, err := w.updateRecord.exec(args[:26]...)
		if err == nil && n == 0 {
			subject, san := names.Of(r.Record)
			args[26], args[27] = text(subject), text(san)
			n, err = w.replaceRecord.exec(args[:]...)
		}
		if err != nil {
			return refused(err)
		}
		if n == 0 {
			found, err := w.has(w.hasRecord, r.id)
			if err == nil && !found {
				return scep.ErrNotFound, nil
			}
			return scep.ErrStale, err
		}
		if len(r.Certificate) > 0 {
			_, err = w.putCertificate.exec(r.id, r.Certificate)
		} else {
			_, err = w.dropCertificate.exec(r.id)
		}
		return nil, err
	})
	if err == nil {
		rec.Version++
	}
	return err
}

// Get implements [scep.Depot].
func (db *DB) Get(ctx context.Context, id scep.ID) (*scep.Record, error) {
	if err := checkIDs(ctx, id); err != nil {
		return nil, err
	}
	return db.record(ctx, getRecord, digits(id))
}

// Latest implements [scep.Depot].
func (db *DB) Latest(ctx context.Context, transaction scep.ID) (*scep.Record, error) {
	if err := checkIDs(ctx, transaction); err != nil {
		return nil, err
	}
	return db.record(ctx, latestRecord, digits(transaction))
}

// GetSerial implements [scep.Depot].
func (db *DB) GetSerial(ctx context.Context, issuer []byte, serial *big.Int) (*scep.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if serial == nil {
		return nil, scep.ErrNotFound
	}
	if issuer == nil {
		issuer = []byte{} // nil would be NULL
	}
	return db.record(ctx, serialRecord, number(serial), issuer)
}

// record returns the one record that a query finds.
func (db *DB) record(ctx context.Context, query string, args ...driver.Value) (*scep.Record, error) {
	var rec *scep.Record
	err := db.read(ctx, func(r *reader) error {
		return r.each(ctx, query, recordColumns, args, func(row []driver.Value) error {
			rec = decode(row)
			return nil
		})
	})
	if err == nil && rec == nil {
		err = scep.ErrNotFound
	}
	return rec, err
}

// List implements [scep.Lister]. By state it is quick except for Issued, and so it is without
// any condition; records of another profile that lie between are read and skipped.
func (db *DB) List(ctx context.Context, q scep.Query) ([]*scep.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	after := []byte{}
	if q.After != "" {
		if err := checkIDs(ctx, q.After); err != nil {
			return nil, err
		}
		after = digits(q.After)
	}
	limit := int64(100)
	if q.Limit > 0 {
		limit = int64(q.Limit)
	}
	args := []driver.Value{after, nil, limit}
	if q.Profile != nil {
		args[1] = *q.Profile
	}
	query := listRecords
	switch q.State {
	case 0:
	case scep.Issued:
		query = listIssued
	default:
		query = listState
		args = append(args, int64(q.State))
	}
	var all []*scep.Record
	err := db.read(ctx, func(r *reader) error {
		return r.each(ctx, query, recordColumns, args, func(row []driver.Value) error {
			all = append(all, decode(row))
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// encoded is a copy of a record that is the committer's, with columns that need making.
type encoded struct {
	*scep.Record
	id, trans      []byte
	renews, serial driver.Value
}

func encode(ctx context.Context, rec *scep.Record) (*encoded, error) {
	if err := checkIDs(ctx, rec.ID, rec.Transaction); err != nil {
		return nil, err
	}
	r := &encoded{Record: rec.Clone(), id: digits(rec.ID), trans: digits(rec.Transaction)}
	if err := checkIDs(ctx, rec.RenewedBy...); err != nil {
		return nil, err
	}
	if rec.Renews != "" {
		if err := checkIDs(ctx, rec.Renews); err != nil {
			return nil, err
		}
		r.renews = digits(rec.Renews)
	}
	if rec.Serial != nil {
		r.serial = number(rec.Serial)
	}
	return r, nil
}

// issuer returns the issuer's number. Where there is a serial number there is an issuer,
// perhaps one without a name, so that the pair is unique.
func (r *encoded) issuer(w *writer) (driver.Value, error) {
	if r.Serial == nil && len(r.Issuer) == 0 {
		return nil, nil
	}
	name := r.Issuer
	if name == nil {
		name = []byte{} // nil would be NULL
	}
	return w.issuer(name)
}

// decode makes a record of a row of selectRecord.
func decode(row []driver.Value) *scep.Record {
	return &scep.Record{
		ID:               toID(row[0]),
		Transaction:      toID(row[1]),
		Version:          toInt(row[2]),
		State:            scep.State(toInt(row[3])),
		Profile:          toText(row[4]),
		Created:          toTime(row[5]),
		Changed:          toTime(row[6]),
		Issuer:           toBlob(row[7]),
		Serial:           toNumber(row[8]),
		NotAfter:         toTime(row[9]),
		Revoked:          toTime(row[10]),
		RevocationReason: int(toInt(row[11])),
		Unconfirmed:      toInt(row[12]) != 0,
		Generation:       int(toInt(row[13])),
		Renews:           toID(row[14]),
		FailInfo:         scep.FailInfo(toInt(row[15])),
		Reason:           toText(row[16]),
		Via:              toText(row[17]),
		RemoteAddr:       toText(row[18]),
		TransactionID:    toText(row[19]),
		CSR:              toBlob(row[20]),
		Template:         toBlob(row[21]),
		RenewedBy:        toIDs(row[22]),
		Certificate:      toBlob(row[23]),
		Unrevoked:        toTime(row[24]),
		DecidedBy:        toText(row[25]),
		Remark:           toText(row[26]),
	}
}
