package sqlite_test

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/depot/sqlite"
)

// TestPlans has no query look at all rows of a table, or sort: each costs the same however
// many records there are.
func TestPlans(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scep.db")
	open(t, path)
	shell, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	for _, query := range sqlite.Queries {
		args := make([]any, strings.Count(query, "?")) // as many as there can be
		rows, err := shell.Query("EXPLAIN QUERY PLAN "+query, args...)
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		for rows.Next() {
			var step string
			var number, parent, unused int
			if err := rows.Scan(&number, &parent, &unused, &step); err != nil {
				t.Fatal(err)
			}
			scan := strings.HasPrefix(step, "SCAN") && !strings.HasPrefix(step, "SCAN (subquery") && step != "SCAN CONSTANT ROW"
			if scan || strings.Contains(step, "TEMP B-TREE") {
				t.Errorf("%s\n%s", query, step)
			}
		}
		if err := rows.Err(); err != nil {
			t.Error(err)
		}
	}
}
