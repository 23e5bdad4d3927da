package postgres

// Queries are all that run while records are served, each once by a name.
var Queries = map[string]string{
	"updateRecord": updateRecord, "whoWrote": whoWrote, "insertRecord": insertRecord,
	"getRecord": getRecord, "latestRecord": latestRecord, "serialRecord": serialRecord,
	"listRecords": listRecords, "listIssued": listIssued, "listState": listState,
	"listRevoked": listRevoked, "listChangedSince": listChangedSince,
	"countExpired": countExpired, "deleteExpired": deleteExpired, "deleteDenied": deleteDenied, "deleteAbandoned": deleteAbandoned,
	"forgetChallenges": forgetChallenges, "insertChallenge": insertChallenge, "spendChallenge": spendChallenge, "getChallenge": getChallenge,
}

var (
	Escape   = escape
	Unescape = unescape
)

// Migrations is the version of the tables.
const Migrations = len(migrations)
