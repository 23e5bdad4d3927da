package sqlite

import (
	"context"
	"fmt"
)

// LimitPages makes the disk as good as full: the file may not have more pages than that, or
// than it has.
func (db *DB) LimitPages(n int) error {
	return db.write(context.Background(), func(w *writer) (answer, err error) {
		_, err = w.value(fmt.Sprintf("PRAGMA max_page_count = %d", n))
		return nil, err
	})
}

// Queries are all that run while records are served.
var Queries = []string{
	updateRecord, replaceRecord, putCertificate, dropCertificate, hasRecord, findIssuer,
	getRecord, latestRecord, serialRecord, listRecords, listIssued, listState,
	listRevoked, listChangedSince, storedBounds, scanRecords,
	findExpired, findDenied, findAbandoned, deleteExpired, deleteDenied, deleteAbandoned,
	forgetChallenges, countChallenges, spendChallenge, spentBy, getChallenge,
}
