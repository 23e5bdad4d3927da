package postgres

import (
	"log/slog"
	"time"
)

const PlanSettings = planSettings

// Queries are all that run while records are served, each once by a name.
var Queries = map[string]string{
	"updateRecord": updateRecord, "whoWrote": whoWrote, "insertRecord": insertRecord,
	"getRecord": getRecord, "latestRecord": latestRecord, "serialRecord": serialRecord,
	"listRecords": listRecords, "listIssued": listIssued, "listState": listState,
	"listRevoked": listRevoked, "listChangedSince": listChangedSince,
	"storedBounds": storedBounds, "scanRecords": scanRecords,
	"countExpired": countExpired, "deleteExpired": deleteExpired, "deleteDenied": deleteDenied, "deleteAbandoned": deleteAbandoned,
	"forgetChallenges": forgetChallenges, "insertChallenge": insertChallenge, "spendChallenge": spendChallenge, "insertSpending": insertSpending, "getChallenge": getChallenge,
}

var (
	Escape   = escape
	Unescape = unescape
)

// Servers returns which servers a URL names, and in how many ways each is tried.
func Servers(url string) (map[string]int, error) {
	config, err := parse(&Config{URL: url, Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	ways := make(map[string]int)
	for _, c := range newPool(config, 1, time.Second, "", slog.New(slog.DiscardHandler)).servers {
		ways[nameOf(c)] += 1 + len(c.Fallbacks)
	}
	return ways, nil
}

// Migrations is the version of the tables.
const Migrations = len(migrations)
