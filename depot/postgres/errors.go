package postgres

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/scepkit/scepkit/scep"
)

// SQLSTATE codes, appendix A of the PostgreSQL manual.
const (
	codeStatementUnknown   = "40003"
	codeSerialization      = "40001"
	codeDeadlock           = "40P01"
	codeReadOnly           = "25006"
	codeNotNull            = "23502"
	codeUnique             = "23505"
	codeUndefinedTable     = "42P01"
	codeUndefinedFunction  = "42883"
	codeDuplicateTable     = "42P07"
	codeDuplicateSchema    = "42P06"
	codeFeature            = "0A000"
	codeInvalidSchema      = "3F000"
	codePrivilege          = "42501"
	codeUnknownStatement   = "26000"
	codeDuplicateStatement = "42P05"
	codeDiskFull           = "53100"
	codeTooManyConnections = "53300"
	codeLockTimeout        = "55P03"
	codeCanceled           = "57014"
)

// code returns the SQLSTATE, or "" if err is not the server's.
func code(err error) string {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return ""
	}
	return e.Code
}

// What an error says about a statement.
type outcome int

const (
	answered outcome = iota // an answer of the contract
	refused                 // it has not happened; the connection is good
	unsent                  // it has not happened; the connection is lost
	unknown                 // the connection is lost
)

func judge(err error) outcome {
	for _, answer := range []error{nil, scep.ErrExists, scep.ErrStale, scep.ErrNotFound, scep.ErrLimit, scep.ErrSpent} {
		if errors.Is(err, answer) {
			return answered
		}
	}
	var e *pgconn.PgError
	switch {
	case errors.Is(err, errStandbyAway):
		return refused
	case errors.As(err, &e) && e.SeverityUnlocalized == "ERROR" && e.Code != codeStatementUnknown:
		return refused // what is worse ends the session, and may have come after the commit
	case pgconn.SafeToRetry(err):
		return unsent
	}
	return unknown
}

// passing reports whether what was refused may be tried again as it is.
func passing(err error) bool {
	switch code(err) {
	case codeSerialization, codeDeadlock, codeReadOnly:
		return true
	}
	return false
}

// explain adds the way out.
func explain(err error) error {
	cure := ""
	switch c := code(err); c {
	case codeReadOnly:
		return fmt.Errorf("%w (%w)", errReadOnly, err)
	case codeUnknownStatement, codeDuplicateStatement:
		return fmt.Errorf("%w (%w)", errPooled, err)
	case codeDiskFull:
		cure = "no space left on the server; free some: "
	case codeTooManyConnections:
		cure = "the server has no connection left; raise its max_connections or lower Config.MaxConns: "
	case codePrivilege:
		cure = "the role may not do this; grant what the package documentation lists: "
	case codeUndefinedTable, codeInvalidSchema:
		cure = "tables are gone; restore them, or if all are gone restart to make new ones: "
	case codeLockTimeout, codeCanceled:
		cure = "took too long on the server; look for what holds its locks or loads its disk: "
	default:
		switch {
		case err == nil:
			return nil
		case len(c) == 5 && c[:2] == "28":
			cure = "the server does not let this role in; check the password and pg_hba.conf: "
		case c == "3D000":
			cure = "there is no such database; create it: "
		}
	}
	return fmt.Errorf("%s%w", cure, err)
}
